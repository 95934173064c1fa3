#!/usr/bin/env bash
# Perplexity of the embedded model against the share of active neurons: LTE, MoEfication, Deja Vu, TEAL, WINA, static cuts.
# It has not been run to its end yet.
#   experiments/lte/run.sh learned once static ablations [OVERRIDES]
#   experiments/lte/run.sh table
# SEEDS (0,1,2), STEPS (600) and SHARES (0.5,0.3,0.2,0.1) may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
results=results/lte
seeds=${SEEDS:-0,1,2}
steps=${STEPS:-600}
shares=${SHARES:-0.5,0.3,0.2,0.1}
base=('evaluation=[perplexity,routing]' results=$results cache=results/cache)
trained=models/lte-trained-$steps

fine_tuning() { # PREFIX: the same training for everybody
    echo "$1.training.max_steps=$steps" "$1.training.learning_rate=3e-4" "$1.training.evaluate_every=100"
}

learned() {
    cfsp -m +experiment=lte "${base[@]}" seed=$seeds schedule.active=$shares $(fine_tuning schedule) "$@"
}

once() { # for the dense model, and for one that has trained as long
    [[ -f $trained/config.json ]] || cfsp "${base[@]}" sparsity=0 criterion=magnitude allocator=uniform recovery=full \
        $(fine_tuning recovery) recovery.training.patience=null save=$trained
    for path in reference $trained; do
        cfsp -m +experiment=moefication "${base[@]}" model.path=$path seed=$seeds schedule.active=$shares \
            schedule/maker=moefication,oracle,deja_vu,teal,wina "$@"
    done
}

static() { # cut the MLPs to the share, then the same steps
    cfsp -m "${base[@]}" seed=$seeds criterion=magnitude,cfsp allocator=uniform sparsity=0.5,0.7,0.8,0.9 recovery=full \
        $(fine_tuning recovery) recovery.training.patience=null "$@"
}

ablations() { # at one share: lambda, which neurons are an expert, where scores begin
    local here=(+experiment=lte "${base[@]}" seed=$seeds schedule.active=0.2 $(fine_tuning schedule))
    cfsp -m "${here[@]}" schedule.pruner.separability=0,0.1,1.0 "$@"
    cfsp -m "${here[@]}" schedule.pruner.grouping=co_activation,random "$@"
    cfsp -m "${here[@]}" schedule.pruner.start=0.5 "$@"
}

case ${1:?expected learned, once, static, ablations or table} in
table) python experiments/lte/table.py ;;
*)
    parts=()
    while [[ $# -gt 0 && $1 != *=* ]]; do parts+=("$1"); shift; done
    for part in "${parts[@]}"; do "$part" "$@"; done
    ;;
esac
