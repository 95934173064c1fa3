#!/usr/bin/env bash
# The five methods, as released and corrected, at 20, 30 and 50 %; then the table.
#   experiments/fidelity/run.sh [reference] [stories260k] [llama_6m]     (default: reference)
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
excerpts=outputs/fidelity

excerpt() {  # excerpt FILE CHARACTERS NAME: the beginning of a text
  mkdir -p $excerpts
  python -c "import sys; sys.stdout.write(open('$1', encoding='utf-8').read()[:$2])" > "$excerpts/$3.txt"
}

sweep() {  # sweep STUDY ROUND_TO SEQLEN OVERRIDES...
  local common=(results="results/fidelity/$1" sparsity=0.2,0.3,0.5) round_to=$2 seqlen=$3
  shift 3
  local long=(seed=0,1,2 calibration.seqlen="$seqlen" "$@")
  cfsp -m "${common[@]}" +experiment=cfsp,cfsp_released "allocator.round_to=$round_to" "${long[@]}"
  cfsp -m "${common[@]}" +experiment=flap,wanda_sp sparsity_of=sites "${long[@]}"
  cfsp -m "${common[@]}" +experiment=flap_released,wanda_sp_released "${long[@]}"
  cfsp -m "${common[@]}" +experiment=llm_pruner,llm_pruner_released seed=0,1,2 "$@"  # samples of its own
  cfsp -m "${common[@]}" +experiment=magnitude,magnitude_released "$@"  # nothing depends on the seed
}

for study in "${@:-reference}"; do
  case $study in
    reference)
      sweep reference 128 512 ;;
    stories260k)  # 172 neurons: a divisor of that
      excerpt data/tinystories/valid_part.txt 200000 tinystories_valid_200k
      sweep stories260k 4 256 model.path=data/stories260K/hf calibration=text \
        calibration.text.paths=data/tinystories/train_part.txt evaluation=perplexity_text \
        evaluation.perplexity_text.text.paths=$excerpts/tinystories_valid_200k.txt \
        evaluation.perplexity_text.window=256 ;;
    llama_6m)
      excerpt data/wikitext2/tokens_train.txt 2000000 wikitext2_train_2m
      excerpt data/wikitext2/raw_test.txt 200000 wikitext2_test_200k
      sweep llama_6m 128 256 model.path=models/llama-6m model.dtype=float32 calibration=text \
        calibration.text.paths=$excerpts/wikitext2_train_2m.txt \
        evaluation=perplexity_text evaluation.perplexity_text.window=256 \
        evaluation.perplexity_text.text.paths=$excerpts/wikitext2_test_200k.txt ;;
    *)
      echo "unknown study $study; expected reference, stories260k, llama_6m" >&2
      exit 1 ;;
  esac
done
python experiments/fidelity/table.py > results/tables/fidelity.md
