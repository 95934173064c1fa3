#!/usr/bin/env bash
# MiniLM-L6 on SST-2 without 40, 60 and 80 % of its heads' and neurons' weights: learned masks against one-shot methods.
# What of it has been run: README.md.
#   python experiments/real_models/fetch.py models minilm                     # once
#   experiments/block_pruning/run.sh dense                                     # once: the fine-tuned dense model
#   experiments/block_pruning/run.sh learned one_shot masks [OVERRIDES]
#   experiments/block_pruning/run.sh validate                                  # after all runs
#   experiments/block_pruning/run.sh speed                                     # on a machine that does nothing else
#   experiments/block_pruning/run.sh table
# Data: data/glue/sst2_train.tsv, data/glue/sst2_dev.tsv; README.md says where from. May be set:
# SEEDS (0), STEPS (1895), SPARSITIES (0.4,0.6,0.8), VARIANTS (struct,hybrid,block), CRITERIA ("magnitude cfsp obs").
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
results=results/block_pruning
dense=models/MiniLM-L6-sst2
steps=${STEPS:-1895}
# The options of the published rows.
refit=(compensation=least_squares compensation.ridge=1e-3 compensation.scale=mean compensation.towards=zero)
seeds=${SEEDS:-0}
sparsities=${SPARSITIES:-0.4,0.6,0.8}

task=('evaluation=[task,size]' evaluation.size.context=32 task=sst2 task.window=64
      task.train.paths=data/glue/sst2_train.tsv task.test.paths=data/glue/sst2_dev.tsv model.dtype=float32 "sites=[mlp,attention]" cache=results/cache)

fine_tuning() { # PREFIX RATE: the same training for everybody
    echo "$1.training.max_steps=$steps" "$1.training.by_length=true" "$1.training.batch_size=32" "$1.training.learning_rate=$2" \
        "$1.training.warmup=100" "$1.training.evaluate_every=200" "$1.data.held_out=320"
}

make_dense() {
    cfsp "${task[@]}" results=$results model.path=models/MiniLM-L6 sparsity=0 criterion=magnitude allocator=uniform recovery=full \
        $(fine_tuning recovery 1e-4) recovery.training.patience=null save=$dense "$@"
}

learned() { # block pruning's variants, distilled from the dense model
    cfsp -m "${task[@]}" results=$results save=true model.path=$dense schedule=movement allocator.allow_empty=true \
        seed=$seeds $(fine_tuning schedule 1e-4) schedule.pruner.variant=${VARIANTS:-struct,hybrid,block} sparsity=$sparsities "$@"
}

masks() { # how scores become masks, and without a teacher: struct at 80 %
    cfsp -m "${task[@]}" results=$results save=true model.path=$dense schedule=movement allocator.allow_empty=true \
        seed=$seeds $(fine_tuning schedule 1e-4) schedule.pruner.variant=struct sparsity=0.8 \
        schedule.pruner.mask=budget,magnitude "$@"
    cfsp -m "${task[@]}" results=$results save=true model.path=$dense schedule=movement allocator.allow_empty=true \
        seed=$seeds $(fine_tuning schedule 1e-4) schedule.pruner.variant=struct sparsity=0.8 \
        recovery/objective@schedule.objective=next_token "$@"
}

one_shot() { # cut first, then the same steps with the same teacher
    local here=("${task[@]}" results=$results save=true model.path=$dense seed=$seeds recovery=full
        recovery/objective=distillation_with_labels $(fine_tuning recovery 1e-4) recovery.training.patience=null)
    for criterion in ${CRITERIA:-magnitude cfsp obs}; do
        local after=(compensation=none)
        [[ $criterion = obs ]] && after=("${refit[@]}")
        cfsp -m "${here[@]}" criterion=$criterion allocator=uniform "${after[@]}" sparsity=$sparsities "$@"
    done
}

filled() { # half of the steps learn the masks of `hybrid`; in the other half zeros inside kept heads train as well
    local whole=$steps
    local steps=$((whole / 2))
    VARIANTS=hybrid learned +experiment=hybrid_filled $(fine_tuning recovery 1e-4) recovery.training.patience=null "$@"
}

decoder() { # the embedded model, the same steps and tokens for both
    local here=(results=$results/decoder cache=results/cache "sites=[mlp,attention]" sparsity=0.5 seed=$seeds)
    cfsp -m "${here[@]}" +experiment=block_pruning schedule.data.window=256 schedule.pruner.variant=${VARIANTS:-struct,hybrid} "$@"
    cfsp -m "${here[@]}" criterion=obs "${refit[@]}" allocator=uniform recovery=full \
        recovery/objective=distillation_with_labels recovery.data.window=256 recovery.training.learning_rate=5e-4 \
        recovery.training.max_steps=400 recovery.training.patience=null "$@"
}

case ${1:?expected dense, learned, masks, one_shot, filled, decoder, validate, speed or table} in
dense) shift; make_dense "$@" ;;
validate) python experiments/block_pruning/validate.py ;;
speed) python experiments/block_pruning/speed.py ;;
table) python experiments/block_pruning/table.py ;;
*)
    parts=()
    while [[ $# -gt 0 && $1 != *=* ]]; do parts+=("$1"); shift; done
    for part in "${parts[@]}"; do "$part" "$@"; done
    ;;
esac
