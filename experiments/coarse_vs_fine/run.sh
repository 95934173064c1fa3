#!/usr/bin/env bash
# CFSP's ablation: coarse metric x fine score x dimension adjustment; calibration set x samples; the tables.
#   experiments/coarse_vs_fine/run.sh [OVERRIDES], e.g. hydra/launcher=joblib hydra.launcher.n_jobs=2
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1  # so that any launcher adds up in the same order
study=results/coarse_vs_fine
common=(cache=results/cache evaluation.perplexity.windows=32 "$@")
steps=allocator.round_to=1,128

fine() {  # fine OVERRIDES...: one fine score under all five coarse ones, with and without adjustment
  cfsp -m results=$study/ablation "${common[@]}" sparsity=0.2,0.5 "$steps" allocator=uniform "$@"
  cfsp -m results=$study/ablation "${common[@]}" sparsity=0.2,0.5 "$steps" allocator=cfsp allocator.metric=angular,cosine,mse,mae \
    "+temperatures=$temperatures" 'allocator.temperature="${temperatures.${allocator.metric}}"' "$@"
}

calibrated() {  # calibrated OVERRIDES...: one method on two texts and three sample counts
  cfsp -m results=$study/calibration "${common[@]}" sparsity=0.5 seed=0,1,2 calibration.samples=8,32,128 \
    +calibration.text.content=documentation,source "$@"
}

temperatures=$(python experiments/coarse_vs_fine/temperatures.py "${common[@]}")
fine criterion=cfsp criterion.variant=paper,released
fine criterion=wanda_sp
fine criterion=magnitude criterion.weights=consumers
steps=allocator.round_to=8,64
fine criterion=cfsp
cfsp -m results=$study/steepness "${common[@]}" sparsity=0.2,0.5 seed=0,1,2 criterion=cfsp allocator=cfsp \
  allocator.temperature=0,0.8,1.6,3.3,6.6,13.1072,26.2
calibrated criterion=cfsp allocator=cfsp,uniform
calibrated criterion=cfsp criterion.variant=released allocator=cfsp_released allocator.round_to=1
python experiments/coarse_vs_fine/table.py "${common[@]}"
