#!/usr/bin/env bash
# Every criterion at 20 % and 50 %; then the tables.
#   experiments/first_look/run.sh [reference] [tinystories] [wikitext2]     (default: reference)
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
excerpts=outputs/first_look

excerpt() {  # excerpt FILE CHARACTERS NAME: the beginning of a text
  mkdir -p $excerpts
  python -c "import sys; sys.stdout.write(open('$1', encoding='utf-8').read()[:$2])" > "$excerpts/$3.txt"
}

sweep() {  # sweep STUDY OVERRIDES...: the criteria under two allocators, then the papers' combinations
  local results="results=results/first_look/$1"
  shift
  cfsp -m "$results" criterion=chance,magnitude,wanda_sp,flap,cfsp sparsity=0.2,0.5 seed=0,1,2 "$@"
  cfsp -m "$results" criterion=chance,magnitude,wanda_sp,flap,cfsp sparsity=0.2,0.5 allocator=uniform "$@"
  cfsp -m "$results" +experiment=wanda_sp,flap sparsity=0.2,0.5 "$@"
  cfsp -m "$results" +experiment=magnitude criterion.weights=consumers sparsity=0.2,0.5 "$@"
  cfsp -m "$results" +experiment=cfsp,cfsp_released sparsity=0.2,0.5 "allocator.round_to=$round_to" \
    allocator.temperature=13.1072 "$@"
}

stories=(
  model.path=data/stories260K/hf calibration=text calibration.samples=64 calibration.seqlen=256
  evaluation=perplexity_text evaluation.perplexity_text.window=256
)
round_to=128  # of CFSP's widths; stories260K has 172 neurons, so it gets a divisor of that
for study in "${@:-reference}"; do
  case $study in
    reference)
      sweep reference ;;
    tinystories)
      round_to=4
      excerpt data/tinystories/valid_part.txt 200000 tinystories_valid_200k
      sweep tinystories "${stories[@]}" calibration.text.paths=data/tinystories/train_part.txt \
        evaluation.perplexity_text.text.paths=$excerpts/tinystories_valid_200k.txt ;;
    wikitext2)
      round_to=4
      excerpt data/wikitext2/tokens_train.txt 1000000 wikitext2_train_1m
      excerpt data/wikitext2/raw_test.txt 100000 wikitext2_test_100k
      sweep wikitext2 "${stories[@]}" calibration.text.paths=$excerpts/wikitext2_train_1m.txt \
        evaluation.perplexity_text.text.paths=$excerpts/wikitext2_test_100k.txt ;;
    *)
      echo "unknown study $study; expected reference, tinystories, wikitext2" >&2
      exit 1 ;;
  esac
done
python experiments/first_look/table.py > results/tables/first_look.md
