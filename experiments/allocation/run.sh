#!/usr/bin/env bash
# What each allocator leaves of each block at 20 % and 50 %; nothing is measured but widths. Then the tables.
#   experiments/allocation/run.sh [OVERRIDES], e.g. hydra/launcher=joblib hydra.launcher.n_jobs=2
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1  # so that any launcher adds up in the same order
common=(results=results/allocation cache=results/cache 'evaluation=[]' "$@")

plan() {
  cfsp -m "${common[@]}" sparsity=0.2,0.5 "$@"
}

temperatures=$(python experiments/coarse_vs_fine/temperatures.py "${common[@]}")
plan allocator=uniform 'sites=[mlp],[mlp,attention]'
plan allocator=cfsp allocator.metric=angular,cosine,mse,mae \
  "+temperatures=$temperatures" 'allocator.temperature="${temperatures.${allocator.metric}}"'
plan allocator=cfsp_released allocator.round_to=1,128
plan allocator=global_rank criterion=cfsp,wanda_sp,flap
plan allocator=global_rank,global_rank_released criterion=flap 'sites=[mlp,attention]'
python experiments/allocation/table.py
