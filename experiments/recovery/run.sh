#!/usr/bin/env bash
# Which recovery wins on the embedded model: 30 % and 50 % of the MLPs, three seeds, equal tokens.
# experiments/recovery/run.sh PART...: recovery (default), reconstruction; jobs run two at a time, with one thread each.
# RESULTS (results/recovery_study) and PYTHON may be set.
set -euo pipefail
results=${RESULTS:-results/recovery_study}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1

cfsp() {
    "$python" -m cfsp -m recovery.training.max_steps=100 recovery.training.warmup=10 \
        recovery.training.patience=null "$@"
}

rates() { # the learning rates to compare at: seed 0, 50 %
    local here=(results="$results/rates" sparsity=0.5)
    cfsp "${here[@]}" recovery=lora,distill recovery.training.learning_rate=1e-3,3e-3,1e-2,3e-2
    cfsp "${here[@]}" recovery=full recovery.training.learning_rate=3e-4,1e-3,3e-3
}

study() {
    cfsp results="$results" sparsity=0.3,0.5 seed=0,1,2 "$@"
}

ranks() {
    study recovery=lora recovery.parameters.proportional_to=uniform,importance,removed \
        recovery.training.learning_rate=1e-2
}

teachers() {
    study recovery=distill recovery.training.learning_rate=1e-2
    study recovery=distill recovery.objective.label_weight=0.5 recovery.objective.logit_weight=0.5 \
        recovery.training.learning_rate=1e-2
    study recovery=full recovery.training.learning_rate=1e-3
}

reconstruction() { # no labels; each sub-layer sees 800 windows, 409,600 tokens, once, as LoRA does in `ranks`
    local here=(results="$results/reconstruction" sparsity=0.3,0.5 seed=0,1,2)
    "$python" -m cfsp -m "${here[@]}"
    "$python" -m cfsp -m "${here[@]}" recovery=reconstruction recovery.data.limit=800 \
        recovery.steps=100 recovery.learning_rate=1e-2
}

tenth() { # 80 windows, 40,960 tokens, for everybody; a sub-layer sees them ten times, LoRA three
    local here=(results="$results/tenth" sparsity=0.3,0.5 seed=0,1,2 recovery.data.limit=80)
    "$python" -m cfsp -m "${here[@]}" recovery=reconstruction recovery.steps=100 recovery.evaluate_every=25 \
        recovery.learning_rate=3e-3
    cfsp "${here[@]}" recovery=lora recovery.training.learning_rate=3e-3 recovery.training.max_steps=30 \
        recovery.training.warmup=3 recovery.training.evaluate_every=5
}

tenth_rates() { # what the learning rates of the tenth were chosen by: seed 0, 50 %
    local here=(results="$results/tenth_rates" sparsity=0.5 recovery.data.limit=80)
    "$python" -m cfsp -m "${here[@]}" recovery=reconstruction recovery.steps=100 recovery.evaluate_every=25 \
        recovery.learning_rate=1e-3,3e-3,1e-2
    cfsp "${here[@]}" recovery=lora recovery.training.learning_rate=3e-3,1e-2 \
        recovery.training.max_steps=10,30,100 recovery.training.warmup=3 recovery.training.evaluate_every=5
}

page() {
    "$python" experiments/recovery/table.py "$1" "$results" > "results/tables/$1.md"
}

for part in "${@:-recovery}"; do
    case $part in
        recovery)
            rates
            teachers & others=$!
            ranks
            wait $others
            "$python" -m cfsp -m results="$results" sparsity=0.3,0.5 seed=0,1,2
            page recovery ;;
        reconstruction)
            reconstruction & others=$!
            tenth
            tenth_rates
            wait $others
            page reconstruction ;;
        *) echo "unknown part $part; expected recovery or reconstruction" >&2; exit 1 ;;
    esac
done
