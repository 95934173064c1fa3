#!/usr/bin/env bash
# Least squares for every criterion, greedy OBS, error curves; then the tables.
#   experiments/beyond/run.sh PART...   parts (default: grid ours): grid ours steps windows, stories_grid
#   stories_ours stories_steps stories_joint, llama_steps llama_joint
# PYTHON, LAUNCHER="hydra/launcher=joblib hydra.launcher.n_jobs=2", SPARSITIES (0.2,0.3,0.5) and SEEDS (0,1,2)
# may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
sparsities=${SPARSITIES:-0.2,0.3,0.5}
export OMP_NUM_THREADS=1  # so that any launcher adds up in the same order
seeds=${SEEDS:-0,1,2}
criteria=magnitude,wanda_sp,flap,cfsp,taylor,obs
reference=(evaluation.perplexity.windows=32)
# The options of the published tables.
refit=(compensation=least_squares compensation.ridge=1e-3 compensation.scale=mean compensation.towards=zero)
mkdir -p outputs/beyond

cfsp() {  # cfsp FOLDER OVERRIDES...: a sweep whose records go to results/beyond/FOLDER
  local folder=$1
  shift
  # shellcheck disable=SC2086
  "$python" -m cfsp -m results="results/beyond/$folder" cache=results/cache ${LAUNCHER:-} \
    "seed=$seeds" "sparsity=$sparsities" "$@"
}

grid() {  # FOLDER OVERRIDES...: every criterion x compensation x allocator, without and with attention
  local sites
  for sites in '[mlp]' '[mlp,attention]'; do
    local every=("$1" "sites=$sites" "criterion=$criteria" "${@:2}")
    cfsp "${every[@]}" compensation=none,mean allocator=uniform,cfsp,global_rank
    cfsp "${every[@]}" compensation=none,mean allocator=error_curves allocator.batches=1
    cfsp "${every[@]}" "${refit[@]}" allocator=uniform,cfsp,global_rank
    cfsp "${every[@]}" "${refit[@]}" allocator=error_curves allocator.batches=1
  done
}

ours() {  # FOLDER OVERRIDES...: what the grid is to be compared with
  local sites
  for sites in '[mlp]' '[mlp,attention]'; do
    cfsp "$1" +experiment=obs "sites=$sites" "${@:2}"
  done
}

steps() {  # FOLDER OVERRIDES...: +experiment=obs, taken apart, and what else might be as good
  local best=(criterion=obs "${refit[@]}")
  cfsp "$1" criterion=cfsp,taylor allocator=uniform compensation=none "${@:2}"
  cfsp "$1" criterion=cfsp,taylor allocator=uniform "${refit[@]}" "${@:2}"
  cfsp "$1" "${best[@]}" allocator=uniform "${@:2}"
  cfsp "$1" "${best[@]}" allocator=uniform schedule=blockwise compensation.target=own,dense,residual "${@:2}"
  cfsp "$1" +experiment=obs allocator=uniform "${@:2}"
  cfsp "$1" +experiment=obs "${@:2}"
  cfsp "$1" +experiment=obs compensation.towards=zero compensation.ridge=1e-3 "${@:2}"
  cfsp "$1" +experiment=obs compensation.ridge=auto "${@:2}"
  cfsp "$1" +experiment=obs compensation.constant=true criterion.constant=true "${@:2}"
  cfsp "$1" +experiment=obs criterion.swaps=30 "${@:2}"
  cfsp "$1" +experiment=obs criterion=taylor "${@:2}"
}

joint() {  # FOLDER OVERRIDES...: errors by what they cost the loss, and exchanges of units between sites
  local sites
  for sites in '[mlp]' '[mlp,attention]'; do
    cfsp "$1" +experiment=obs criterion.metric=fisher allocator.rounds=0,20 "sites=$sites" "${@:2}"
  done
}

windows() {  # OVERRIDES...: how many windows least squares needs, and what the ridge does about too few
  local all=(windows criterion=obs allocator=uniform "$@") few=1,2 many=8,32,128,256 ridge
  sparsities=0.5 cfsp "${all[@]}" compensation=none calibration.samples=$few,$many
  for ridge in 1e-5 1e-3 1e-1; do
    sparsities=0.5 cfsp "${all[@]}" "${refit[@]}" compensation.ridge=$ridge calibration.samples=$few,$many
  done
  # auto holds out every eighth window
  sparsities=0.5 cfsp "${all[@]}" "${refit[@]}" compensation.ridge=auto calibration.samples=$many
}

excerpt() {  # excerpt FILE CHARACTERS NAME: the beginning of a text
  "$python" -c "import sys; sys.stdout.write(open('$1', encoding='utf-8').read()[:$2])" > "outputs/beyond/$3.txt"
}

study() {  # MODEL TRAIN TEST: fills `texts` with the overrides for a model and texts of one's own, in windows of 256
  texts=(model.path="$1" model.dtype=float32 calibration=text calibration.text.paths="$2" calibration.samples=64
    calibration.seqlen=256 calibration.batch_size=16 evaluation=perplexity_text
    evaluation.perplexity_text.text.paths="$3" evaluation.perplexity_text.window=256)
}

stories() {
  excerpt data/tinystories/valid_part.txt 200000 tinystories_valid_200k
  study data/stories260K/hf data/tinystories/train_part.txt outputs/beyond/tinystories_valid_200k.txt
}

llama() {
  excerpt data/wikitext2/tokens_train.txt 1000000 wikitext2_train_1m
  excerpt data/wikitext2/raw_test.txt 300000 wikitext2_test_300k
  study models/llama-6m outputs/beyond/wikitext2_train_1m.txt outputs/beyond/wikitext2_test_300k.txt
}

for part in "${@:-grid ours}"; do
  for one in $part; do
    case $one in
      grid) grid reference "${reference[@]}" ;;
      ours) ours reference_ours "${reference[@]}" ;;
      steps) steps reference_steps "${reference[@]}" ;;
      windows) windows "${reference[@]}" ;;
      stories_grid) stories; grid stories260k "${texts[@]}" ;;
      stories_ours) stories; ours stories260k_ours "${texts[@]}" ;;
      stories_steps) stories; steps stories260k_steps "${texts[@]}" ;;
      stories_joint) # in batches of eight, so that trials are measured on others than they are cut on
        stories; joint stories260k_joint "${texts[@]}" calibration.batch_size=8 ;;
      llama_steps) llama; steps llama_6m_steps "${texts[@]}" ;;
      llama_joint) llama; joint llama_6m_joint "${texts[@]}" calibration.batch_size=8 ;;
      *)
        echo "unknown part $one; expected grid, ours, steps, windows, stories_grid, stories_ours, stories_steps, stories_joint, llama_steps or llama_joint" >&2
        exit 1 ;;
    esac
  done
done
"$python" experiments/beyond/table.py > results/tables/beyond.md
