#!/usr/bin/env bash
# LoRAShear against cutting first and training afterwards, at equal training tokens, and without each of its parts.
# What of it has been run: README.md.
#   experiments/lorashear/run.sh rivals ablations [OVERRIDES]
#   experiments/lorashear/run.sh real [OVERRIDES]      # README.md says what it needs
#   experiments/lorashear/run.sh table
# SEEDS (0,1,2), SHARES (0.2,0.5), STEPS (100), RATE (5e-3), WINDOW (512), PYTHON (.venv/bin/python), ZERO_SHOT and
# RIVALS (taylor cfsp obs) may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
results=results/lorashear
steps=${STEPS:-100}
rate=${RATE:-5e-3}
window=${WINDOW:-512}
read -ra zero_shot <<< "${ZERO_SHOT:-}"
export OMP_NUM_THREADS=1

# The options of the published rows.
refit=(compensation=least_squares compensation.ridge=1e-3 compensation.scale=mean compensation.towards=zero)

cfsp() { "$python" -m cfsp "$@"; }

probes=() # of error curves; the real model's are fewer
mixture=stdlib # two texts to train on: stdlib, or web for the real model
here=("sites=[mlp,attention]" cache=results/cache)
embedded=("${here[@]}" results=$results "sparsity=${SHARES:-0.2,0.5}" "seed=${SEEDS:-0,1,2}")
smollm=("${here[@]}" results=$results/real model.path=models/SmolLM2-135M-Instruct model.dtype=float32 sparsity=0.2 seed=0
    calibration=text calibration.text.paths=data/c4/sample_c4-rp1.jsonl calibration.within_documents=true
    calibration.samples=32 calibration.seqlen=512 calibration.batch_size=2 evaluation.perplexity_text.window=1024
    evaluation.perplexity_text.windows=8 evaluation.perplexity_text.batch_size=2
    "evaluation=[perplexity_text${ZERO_SHOT:+,zero_shot}]"
    evaluation.perplexity_text.text.paths=data/wikitext2/raw_test.txt "${zero_shot[@]}")

lengths() { # a training of so many steps: PREFIX STEPS
    echo "$1.training.max_steps=$2" "$1.training.learning_rate=$rate" "$1.training.warmup=10" \
        "$1.training.batch_size=8" "$1.training.patience=null" "$1.data.window=$window"
}

texts() { # PREFIX: the mixture that it trains on
    local group=recovery/data@$1.data
    [[ $1 = recovery ]] && group=recovery/data
    if [[ $mixture = stdlib ]]; then echo "$group=stdlib_mixture"; return; fi
    echo "$group=text" "$1.data.sources.text.text.paths=data/c4/sample_c4-rp1.jsonl" \
        "+$1.data.sources.wikitext2={_target_:cfsp.data.sources.Prose,text:{_target_:cfsp.data.texts.Files,paths:data/wikitext2/raw_validation.txt,column:text}}"
}

shear() { # LoRAShear: STEPS steps of pruning, at most two rounds of STEPS steps, all on the mixture of two texts
    cfsp -m "$@" +experiment=lorashear $(texts schedule) $(texts recovery) $(lengths schedule "$steps") \
        $(lengths recovery "$steps") recovery.rounds=2 recovery.per_round=$((8 * steps))
}

one_shot() { # the rivals: cut first, then three times STEPS steps on the same mixture
    local after=($(lengths recovery $((3 * steps))) $(texts recovery))
    for rival in ${RIVALS:-taylor cfsp obs}; do
        case $rival in
        taylor) cfsp -m "$@" criterion=taylor allocator=uniform recovery=lora "${after[@]}" ;;
        cfsp) cfsp -m "$@" criterion=cfsp allocator=cfsp recovery=importance_lora "${after[@]}" ;;
        obs)
            cfsp -m "$@" criterion=obs allocator=error_curves "${refit[@]}" "${probes[@]}" recovery=lora \
                "${after[@]}"
            ;;
        esac
    done
}

rivals() {
    shear "${embedded[@]}" "$@"
    one_shot "${embedded[@]}" "$@"
}

ablations() {
    shear "${embedded[@]}" 'allocator.protect=[]' "$@"
    shear "${embedded[@]}" schedule.pruner.variant=linear_decay "$@"
    shear "${embedded[@]}" recovery.balance=1 "$@"
}

real() { # the mixture of two texts is C4 and WikiText-2's validation split
    local probes=('allocator.shares=[0.8]' allocator.batches=1) mixture=web
    shear "${smollm[@]}" +allocator/knowledge=default 'allocator.knowledge.ratios=[0.5]' allocator.knowledge.batches=2 "$@"
    one_shot "${smollm[@]}" "$@"
}

parts=()
while [[ $# -gt 0 && $1 != *=* ]]; do parts+=("$1"); shift; done
[[ ${#parts[@]} -gt 0 ]] || { echo "expected rivals, ablations, real or table" >&2; exit 2; }
for part in "${parts[@]}"; do
    if [[ $part == table ]]; then "$python" experiments/lorashear/table.py; else "$part" "$@"; fi
done
