#!/usr/bin/env bash
# Perplexity of the embedded model against the share of active neurons: LTE, MoEfication, Deja Vu, TEAL, WINA, static cuts;
# accuracy of MiniLM-L6 on SST-2; SmolLM2-135M at one share. What of it has been run: README.md.
#   experiments/lte/run.sh learned once once_trained static ablations [OVERRIDES]
#   experiments/lte/run.sh encoder encoder_once [OVERRIDES]      # needs experiments/block_pruning/run.sh dense, and its data
#   experiments/lte/run.sh real [OVERRIDES]         # needs experiments/real_models/fetch.py models smollm2
#   experiments/lte/run.sh table
# SEEDS (0,1,2), STEPS (200), SHARES (0.5,0.3,0.2,0.1), MAKERS, MODELS (of once),
# CRITERIA (magnitude,cfsp) and SPARSITIES (0,0.5,0.7,0.8,0.9; of static) and ABLATIONS may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
results=results/lte
seeds=${SEEDS:-0,1,2}
steps=${STEPS:-200}
shares=${SHARES:-0.5,0.3,0.2,0.1}
base=('evaluation=[perplexity,routing]' results=$results cache=results/cache)
trained=models/lte-trained-$steps
makers=${MAKERS:-moefication oracle deja_vu teal wina}
experts=8 # neurons in an expert: the embedded model's MLPs have 512, LLaMA-7B's 11,008

fine_tuning() { # PREFIX: the same training for everybody
    echo "$1.training.max_steps=$steps" "$1.training.learning_rate=1e-3" "$1.training.evaluate_every=100" \
        "$1.data.window=256" "$1.training.batch_size=8" "$1.training.patience=null"
}

learned() {
    cfsp -m +experiment=lte "${base[@]}" seed=$seeds schedule.active=$shares \
        $(fine_tuning schedule) "$@"
}

with_teacher() { # PREFIX: the dense model teaches LTE and the cut models
    if [[ $1 = schedule ]]; then
        echo recovery/objective@schedule.objective=distillation_with_labels schedule.pruner.adaptation=0.7
    else
        echo recovery/objective=distillation_with_labels
    fi
}

once() { # for the dense model, and for one that has trained as long
    local models=${MODELS:-reference $trained}
    [[ $models != *$trained* || -f $trained/config.json ]] || cfsp "${base[@]}" sparsity=0 criterion=magnitude \
        allocator=uniform recovery=full $(fine_tuning recovery) save=$trained
    for path in $models; do
        for maker in $makers; do
            size=()
            [[ $maker = moefication || $maker = oracle ]] && size=(schedule.maker.expert_size=$experts)
            cfsp -m +experiment=moefication "${base[@]}" model.path=$path seed=$seeds schedule.active=$shares \
                schedule/maker=$maker "${size[@]}" "$@"
        done
    done
}

once_trained() { # the same routers, and then the same training with the same teacher
    for maker in ${MAKERS:-moefication deja_vu teal wina}; do
        size=()
        [[ $maker = moefication ]] && size=(schedule.maker.expert_size=$experts)
        cfsp -m +experiment=moefication "${base[@]}" seed=$seeds schedule.active=$shares schedule/maker=$maker "${size[@]}" \
            recovery=full $(with_teacher recovery) $(fine_tuning recovery) "$@"
    done
}

static() { # cut the MLPs to the share (0: the dense model), then the same steps
    cfsp -m "${base[@]}" seed=$seeds criterion=${CRITERIA:-magnitude,cfsp} allocator=uniform \
        sparsity=${SPARSITIES:-0,0.5,0.7,0.8,0.9} recovery=full $(with_teacher recovery) $(fine_tuning recovery) "$@"
}

ablations() { # at one share: lambda, which neurons are an expert, where scores begin, no teacher
    local here=(+experiment=lte "${base[@]}" seed=$seeds schedule.active=0.2 $(fine_tuning schedule)) lte=schedule.pruner
    local every="$lte.separability=0,0.3,1.0 $lte.grouping=co_activation,random $lte.start=0.5 $lte.initial=random"
    every+=" recovery/objective@schedule.objective=next_token"
    for changed in ${ABLATIONS:-$every}; do cfsp -m "${here[@]}" "$changed" "$@"; done
}

sst2() { # OVERRIDES: what runs of the classifier share
    cfsp -m 'evaluation=[task,routing_task]' results=$results-encoder cache=results/cache task=sst2 task.window=64 \
        task.train.paths=data/glue/sst2_train.tsv task.test.paths=data/glue/sst2_validation.jsonl \
        model.path=models/MiniLM-L6-sst2 model.dtype=float32 "sites=[mlp]" sparsity=0 seed=${SEEDS:-0} "$@"
}

encoder() { # a classifier of GELU, the paper's GLUE case. The share is held on training rows, which are phrases; test
    # sentences use a little more of the neurons
    sst2 schedule=routing $(with_teacher schedule) schedule.active=0.17 schedule.pruner.expert_size=16 \
        schedule.training.max_steps=$steps schedule.training.by_length=true schedule.training.batch_size=32 \
        schedule.training.learning_rate=1e-4 schedule.training.warmup=50 schedule.training.evaluate_every=100 \
        schedule.training.patience=null schedule.data.held_out=320 "$@"
}

encoder_once() { # the best experts of a predictor, without training
    sst2 +experiment=moefication schedule.active=0.5,0.2 schedule.maker.expert_size=16 "$@"
}

real() { # SmolLM2-135M at one share
    local here=(model.path=models/SmolLM2-135M-Instruct model.dtype=float32 "sites=[mlp]" sparsity=0 results=$results-real
        cache=results/cache 'evaluation=[perplexity_text,routing_text]'
        evaluation.perplexity_text.text.paths=data/wikitext2/raw_test.txt
        evaluation.routing_text.text.paths=data/wikitext2/raw_test.txt evaluation.routing_text.windows=16
        evaluation.perplexity_text.windows=16 evaluation.perplexity_text.window=512 calibration.samples=16
        calibration.seqlen=256 schedule.active=0.5)
    for maker in moefication deja_vu teal wina; do
        cfsp "${here[@]}" +experiment=moefication 'evaluation=[perplexity_text,routing_text]' schedule/maker=$maker "$@"
    done
    cfsp "${here[@]}" +experiment=lte 'evaluation=[perplexity_text,routing_text]' schedule.pruner.expert_size=32 \
        recovery/data@schedule.data=text schedule.data.sources.text.text.paths=data/c4/sample_c4-rp1.jsonl \
        schedule.pruner.separability=0 schedule.training.max_steps=160 schedule.training.evaluate_every=40 \
        schedule.training.learning_rate=3e-4 schedule.training.batch_size=4 schedule.data.window=128 "$@"
}

case ${1:?expected learned, once, once_trained, static, ablations, encoder, encoder_once, real or table} in
table) python experiments/lte/table.py ;;
*)
    parts=()
    while [[ $# -gt 0 && $1 != *=* ]]; do parts+=("$1"); shift; done
    for part in "${parts[@]}"; do "$part" "$@"; done
    ;;
esac
