#!/usr/bin/env bash
# Least squares for every criterion, greedy OBS, error curves; then the tables.
#   experiments/beyond/run.sh PART...   parts: grid attention curves ours seeds windows stories llama (default: grid ours)
# PYTHON, LAUNCHER="hydra/launcher=joblib hydra.launcher.n_jobs=2" and SPARSITIES, ALLOCATORS and SEEDS
# (0.2,0.3,0.5) may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
sparsities=${SPARSITIES:-0.2,0.3,0.5}
export OMP_NUM_THREADS=1  # so that any launcher adds up in the same order
allocators=${ALLOCATORS:-uniform,cfsp,global_rank}
seeds=${SEEDS:-0,1,2}
criteria=magnitude,wanda_sp,flap,cfsp,taylor,obs
mkdir -p outputs/beyond

cfsp() {  # cfsp FOLDER OVERRIDES...: a sweep whose records go to results/beyond/FOLDER
  local folder=$1
  shift
  # shellcheck disable=SC2086
  "$python" -m cfsp -m results="results/beyond/$folder" cache=results/cache ${LAUNCHER:-} "sparsity=$sparsities" "$@"
}

grid() {  # FOLDER OVERRIDES...: every criterion x compensation x allocator
  cfsp "$1" "criterion=$criteria" compensation=none,mean,least_squares "${@:2}"
}

steps() {  # FOLDER OVERRIDES...: +experiment=obs, taken apart, and what else might be as good
  local ours=(criterion=obs compensation=least_squares)
  cfsp "$1" criterion=cfsp,taylor allocator=uniform compensation=none,least_squares "${@:2}"
  cfsp "$1" "${ours[@]}" allocator=uniform "${@:2}"
  cfsp "$1" "${ours[@]}" allocator=uniform schedule=blockwise compensation.target=own,dense,residual "${@:2}"
  cfsp "$1" +experiment=obs allocator=uniform "${@:2}"
  cfsp "$1" +experiment=obs "${@:2}"
  cfsp "$1" +experiment=obs compensation.towards=zero compensation.ridge=1e-3 "${@:2}"
  cfsp "$1" +experiment=obs compensation.ridge=auto "${@:2}"
  cfsp "$1" +experiment=obs compensation.constant=true criterion.constant=true "${@:2}"
  cfsp "$1" +experiment=obs criterion.swaps=30 "${@:2}"
  cfsp "$1" +experiment=obs criterion=taylor "${@:2}"
}

excerpt() {  # excerpt FILE CHARACTERS NAME: the beginning of a text
  "$python" -c "import sys; sys.stdout.write(open('$1', encoding='utf-8').read()[:$2])" > "outputs/beyond/$3.txt"
}

text_study() {  # MODEL TRAIN TEST: overrides of a model and texts of one's own, in windows of 256
  echo "model.path=$1" model.dtype=float32 calibration=text "calibration.text.paths=$2" calibration.samples=64 \
    calibration.seqlen=256 calibration.batch_size=16 evaluation=perplexity_text \
    "evaluation.perplexity_text.text.paths=$3" evaluation.perplexity_text.window=256
}

for part in "${@:-grid ours}"; do
  for one in $part; do
    case $one in
      grid) grid reference "allocator=$allocators" evaluation.perplexity.windows=32 ;;
      attention)
        grid reference "allocator=$allocators" 'sites=[mlp,attention]' evaluation.perplexity.windows=32 ;;
      curves)
        for sites in '[mlp]' '[mlp,attention]'; do
          grid reference allocator=error_curves allocator.batches=1 "sites=$sites" evaluation.perplexity.windows=32
        done ;;
      seeds) steps reference_steps "seed=$seeds" evaluation.perplexity.windows=32 ;;
      ours)
        for sites in '[mlp]' '[mlp,attention]'; do
          cfsp reference_ours +experiment=obs "sites=$sites" "seed=$seeds" evaluation.perplexity.windows=32
        done ;;
      windows)
        for ridge in 1e-5 1e-3 1e-1 auto; do
          sparsities=0.5 cfsp windows criterion=obs compensation=least_squares compensation.ridge=$ridge \
            allocator=uniform calibration.samples=8,32,128,256 seed=0,1,2 evaluation.perplexity.windows=32
        done ;;
      stories)
        excerpt data/tinystories/valid_part.txt 200000 tinystories_valid_200k
        # shellcheck disable=SC2046
        steps stories260k $(text_study data/stories260K/hf data/tinystories/train_part.txt \
          outputs/beyond/tinystories_valid_200k.txt) "seed=$seeds" ;;
      llama)
        excerpt data/wikitext2/tokens_train.txt 1000000 wikitext2_train_1m
        excerpt data/wikitext2/raw_test.txt 300000 wikitext2_test_300k
        # shellcheck disable=SC2046
        steps llama_6m $(text_study models/llama-6m outputs/beyond/wikitext2_train_1m.txt \
          outputs/beyond/wikitext2_test_300k.txt) "seed=$seeds" ;;
      *)
        echo "unknown part $one; expected grid, attention, curves, ours, seeds, windows, stories or llama" >&2
        exit 1 ;;
    esac
  done
done
"$python" experiments/beyond/table.py > results/tables/beyond.md
