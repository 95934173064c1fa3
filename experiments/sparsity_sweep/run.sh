#!/usr/bin/env bash
# Five methods at 10 to 70 % of what each of them prunes, three seeds; then the tables.
#   experiments/sparsity_sweep/run.sh [OVERRIDES], e.g. hydra/launcher=joblib hydra.launcher.n_jobs=2
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1  # so that any launcher adds up in the same order

cfsp -m results=results/sparsity_sweep cache=results/cache evaluation.perplexity.windows=32 \
  +experiment=cfsp,flap,wanda_sp,llm_pruner,magnitude 'allocator.protect=[]' \
  sparsity=0.1,0.2,0.3,0.4,0.5,0.6,0.7 seed=0,1,2 "$@"
python experiments/sparsity_sweep/table.py
