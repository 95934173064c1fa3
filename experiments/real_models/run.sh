#!/usr/bin/env bash
# SmolLM2-135M-Instruct without 10 to 50 % of its MLPs, six ways; then the table and the README's figure.
#   pip install gguf && python experiments/real_models/fetch.py models     # once
#   experiments/real_models/run.sh [OVERRIDES]
# Texts: data/c4/sample_c4-rp1.jsonl (calibration), data/wikitext2/raw_test.txt (test); see README.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
study=real_models

sweep() {
  cfsp -m results=results/$study cache=results/cache \
    model.path=models/SmolLM2-135M-Instruct model.dtype=float32 \
    calibration=text calibration.text.paths=data/c4/sample_c4-rp1.jsonl calibration.within_documents=true \
    calibration.samples=64 calibration.seqlen=512 \
    evaluation=perplexity_text evaluation.perplexity_text.text.paths=data/wikitext2/raw_test.txt \
    evaluation.perplexity_text.window=1024 evaluation.perplexity_text.windows=16 \
    evaluation.perplexity_text.batch_size=2 sparsity=0.1,0.2,0.3,0.5 "$@"
}

sweep criterion=wanda_sp allocator=uniform compensation=none,least_squares "$@"
sweep +experiment=cfsp "$@"
sweep +experiment=obs allocator=cfsp "$@"
sweep criterion=flap allocator=uniform compensation=mean "$@"
sweep criterion=magnitude allocator=uniform "$@"
