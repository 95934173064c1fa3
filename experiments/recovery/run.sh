#!/usr/bin/env bash
# Which recovery wins on the embedded model: 30 % and 50 % of the MLPs, three seeds, equal tokens.
# experiments/recovery/run.sh [RESULTS]; the jobs run two at a time, with one thread each.
set -euo pipefail
results=${1:-results/recovery_study}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1

cfsp() {
    "$python" -m cfsp -m recovery.training.max_steps=100 recovery.training.warmup=10 \
        recovery.training.patience=null "$@"
}

rates() { # the learning rates to compare at: seed 0, 50 %
    local here=(results="$results/rates" sparsity=0.5)
    for recovery in lora distill; do  # one by one: Hydra checks other overrides before it sweeps a group
        cfsp "${here[@]}" recovery=$recovery recovery.training.learning_rate=1e-3,3e-3,1e-2,3e-2
    done
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

locally() { # local reconstruction, 200 steps for each sub-layer, on the same 800 windows
    "$python" -m cfsp -m results="$results" sparsity=0.3,0.5 seed=0,1,2 recovery=reconstruction \
        recovery.data.limit=800 recovery.learning_rate=1e-2
}

tenth() { # 80 windows, 40,960 tokens, for everybody; LoRA sees them three times
    local here=(results="$results/tenth" sparsity=0.3,0.5 seed=0,1,2 recovery.data.limit=80)
    "$python" -m cfsp -m "${here[@]}" recovery=reconstruction recovery.steps=100 recovery.evaluate_every=25 \
        recovery.learning_rate=1e-2
    cfsp "${here[@]}" recovery=lora recovery.training.learning_rate=3e-3 recovery.training.max_steps=30 \
        recovery.training.warmup=3 recovery.training.evaluate_every=5
}

tenth_rates() { # what the learning rates of the tenth were chosen by: seed 0, 50 %
    local here=(results="$results/tenth_rates" sparsity=0.5 recovery.data.limit=80)
    "$python" -m cfsp -m "${here[@]}" recovery=reconstruction recovery.steps=100 recovery.evaluate_every=25 \
        recovery.learning_rate=1e-3,3e-3,1e-2,3e-2 recovery.target=stream,sublayer
    cfsp "${here[@]}" recovery=lora recovery.training.learning_rate=3e-3,1e-2 \
        recovery.training.max_steps=10,30 recovery.training.warmup=3 recovery.training.evaluate_every=5
}

rates
tenth_rates
{ ranks; locally; } &
{ teachers; tenth; } &
wait
"$python" -m cfsp -m results="$results" sparsity=0.3,0.5 seed=0,1,2
"$python" experiments/recovery/table.py "$results" > results/tables/recovery.md
