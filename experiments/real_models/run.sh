#!/usr/bin/env bash
# SmolLM2-135M-Instruct without 20, 30 and 50 % of its MLPs, five ways; then the table and the figure.
#   pip install gguf && python experiments/real_models/fetch.py models     # once
#   experiments/real_models/run.sh [OVERRIDES]
# Texts: data/c4/sample_c4-rp1.jsonl (calibration) and data/wikitext2/raw_test.txt (test); README.md says where from.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
study=real_models

sweep() {
  cfsp -m results=results/$study cache=results/cache \
    model.path=models/SmolLM2-135M-Instruct model.dtype=float32 \
    calibration=text calibration.text.paths=data/c4/sample_c4-rp1.jsonl calibration.within_documents=true \
    calibration.samples=32 calibration.seqlen=512 \
    evaluation=perplexity_text evaluation.perplexity_text.text.paths=data/wikitext2/raw_test.txt \
    evaluation.perplexity_text.window=1024 evaluation.perplexity_text.windows=8 \
    evaluation.perplexity_text.batch_size=2 sparsity=0.2,0.3,0.5 "$@"
}

sweep criterion=wanda_sp allocator=uniform compensation=none,least_squares "$@"
sweep criterion=magnitude allocator=uniform "$@"
sweep +experiment=cfsp "$@"
sweep +experiment=obs allocator=cfsp "$@"

python experiments/real_models/table.py
