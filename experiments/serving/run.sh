#!/usr/bin/env bash
# Pruned models in llama.cpp: a random Llama of 0.4 B parameters, SmolLM2-135M without 30 %, the cost of an export.
#   pip install gguf xllamacpp && python experiments/real_models/fetch.py models smollm2      # once
#   experiments/serving/run.sh [random|smollm2|export_cost ...]
# Data: data/c4/sample_c4-rp1.jsonl and data/wikitext2/raw_test.txt; experiments/real_models/README.md says where from.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
dense=models/SmolLM2-135M-Instruct
smaller=models/SmolLM2-135M-Instruct-30

random() { python experiments/serving/serve_in_llama_cpp.py random --threads 1; }

smollm2() { # MLPs lose 30 % of their parameters by CFSP, each block another share
  [[ -f $smaller/config.json ]] || cfsp results=results/serving cache=results/cache model.path=$dense model.dtype=float32 \
    +experiment=cfsp sparsity=0.3 calibration=text calibration.text.paths=data/c4/sample_c4-rp1.jsonl \
    calibration.within_documents=true calibration.samples=32 calibration.seqlen=512 evaluation=size save=$smaller
  python experiments/serving/serve_in_llama_cpp.py pruned $dense $smaller --text data/wikitext2/raw_test.txt --threads 1
}

export_cost() { python experiments/serving/serve_in_llama_cpp.py export; }

[[ $# -gt 0 ]] || set -- random smollm2 export_cost
for part in "$@"; do
  case $part in
  random | smollm2 | export_cost) "$part" ;;
  *)
    echo "run.sh: no part $part; expected random, smollm2 or export_cost" >&2
    exit 1
    ;;
  esac
done
