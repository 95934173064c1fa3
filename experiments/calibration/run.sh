#!/usr/bin/env bash
# What the calibration's text, its amount and its windows change: SmolLM2-135M-Instruct without 30 % of its MLPs.
#   experiments/calibration/run.sh [sources] [sizes] [table] [OVERRIDES]       # without a part: these three
#   experiments/calibration/run.sh written                                     # the model writes its own text
# SEEDS (0,1,2) may be set. Data and what of it has been run: README.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
seeds=${SEEDS:-0,1,2}
results=results/calibration
c4=data/c4/sample_c4-rp1.jsonl
wikitext2=data/wikitext2/raw_validation.txt
overrides=()

methods() { # OVERRIDES: six methods under one calibration, measured on two texts
    local here=(results=$results cache=results/cache model.path=models/SmolLM2-135M-Instruct model.dtype=float32
        sparsity=0.3 calibration.samples=32 calibration.seqlen=512 evaluation=perplexity_text
        evaluation.perplexity_text.text.paths=data/wikitext2/raw_test.txt evaluation.perplexity_text.batch_size=2
        evaluation.perplexity_text.window=1024 evaluation.perplexity_text.windows=8
        "+evaluation.c4={_target_:cfsp.evaluation.perplexity.Perplexity,text:{_target_:cfsp.data.texts.Files,paths:[data/c4/sample_c4-rp2.jsonl],column:text},window:1024,batch_size:2,windows:8}")
    cfsp -m "${here[@]}" +experiment=cfsp_released allocator.round_to=1 "$@" "${overrides[@]}"
    cfsp -m "${here[@]}" +experiment=refit compensation.ridge=1 "$@" "${overrides[@]}"
    cfsp -m "${here[@]}" criterion=wanda_sp allocator=uniform "$@" "${overrides[@]}"
    cfsp -m "${here[@]}" +experiment=obs_fisher "$@" "${overrides[@]}"
    cfsp -m "${here[@]}" criterion=flap allocator=global_rank compensation=least_squares "$@" "${overrides[@]}"
    cfsp -m "${here[@]}" criterion=taylor allocator=uniform compensation=least_squares "$@" "${overrides[@]}"
}

sources() { # every text is joined, and windows are drawn from all of it; of several files the longer counts more
    methods calibration=text seed="$seeds" "calibration.text.paths=[$c4],[$wikitext2],[data/novels],[$c4,$wikitext2]"
    methods calibration=text seed="$seeds" calibration.text._target_=cfsp.data.instructions.Conversations '~calibration.text.column' \
        +calibration.text.form=pairs 'calibration.text.paths=[data/instructions/dolly.jsonl]'
}

sizes() {
    methods calibration=text calibration.samples=8,128 "calibration.text.paths=[$c4],[$wikitext2]"
}

written() { # 448 tokens after the beginnings of C4's documents
    methods calibration=self_text seed="$seeds" calibration.text.paths=$c4
}

table() {
    cfsp-tables $results/records --rows calibration.text.paths,calibration.samples --columns criterion,allocator,compensation \
        --metric 'perplexity*' --output results/tables/calibration.md
}

parts=()
for argument in "$@"; do
    case $argument in
    sources | sizes | written | table) parts+=("$argument") ;;
    *=*) overrides+=("$argument") ;;
    *)
        echo "run.sh: no part $argument; expected sources, sizes, written, table, then KEY=VALUE" >&2
        exit 1
        ;;
    esac
done
[[ ${#parts[@]} -gt 0 ]] || parts=(sources sizes table)
for part in "${parts[@]}"; do "$part"; done
