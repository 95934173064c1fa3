#!/usr/bin/env bash
# Real models without 20, 30 and 50 % of their MLPs, or of MLPs and attention, in named parts.
#   pip install gguf && python experiments/real_models/fetch.py models smollm2 gemma3     # once
#   experiments/real_models/run.sh [PART ...] [OVERRIDES]          # without a part: published
#   MODEL=gemma-3-270m experiments/real_models/run.sh mlp zero_shot
#   CALIBRATION=wikitext2 experiments/real_models/run.sh mlp       # c4 if it is not set
# Parts: published, cost, in_domain, in_domain_256, with_attention, and those of the full protocol: mlp, both, depth,
# recovery, latency, zero_shot, generation, or all of these. README.md says what each measures, how long it takes and
# where the texts come from. Afterwards the tables and figures are written anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
MODEL=${MODEL:-SmolLM2-135M-Instruct}
WINDOWS=${WINDOWS:-32}
QUESTIONS=${QUESTIONS:-250}
STEPS=${STEPS:-200} BATCH=${BATCH:-8}
c4=(calibration.text.paths=data/c4/sample_c4-rp1.jsonl calibration.within_documents=true)
wikitext2=(calibration.text.paths=data/wikitext2/raw_validation.txt calibration.within_documents=false)
case ${CALIBRATION:=c4} in
  c4) calibration=("${c4[@]}") ;;
  wikitext2) calibration=("${wikitext2[@]}") ;;
  *) echo "run.sh: no calibration $CALIBRATION; expected c4 or wikitext2" >&2; exit 1 ;;
esac
study=real_models
[[ $CALIBRATION == c4 ]] || study=real_models_on_$CALIBRATION # a table has one calibration
full=results/${study}_full/$MODEL
parts=() overrides=()

prune() { # RESULTS OVERRIDES: what all runs share
  local results=$1
  shift
  cfsp -m results="$results" cache=results/cache model.path="models/$MODEL" model.dtype=float32 \
    calibration=text "${calibration[@]}" \
    calibration.samples=32 calibration.seqlen=512 sparsity=0.2,0.3,0.5 "$@" "${overrides[@]}"
}

tested=(evaluation.perplexity_text.text.paths=data/wikitext2/raw_test.txt evaluation.perplexity_text.batch_size=2)

short=("${tested[@]}" evaluation=perplexity_text evaluation.perplexity_text.window=1024 evaluation.perplexity_text.windows=8)

# The methods of the first table; COMMAND gets the options of one after the other.
each_method() { # COMMAND ...
  local criterion compensation
  "$@" +experiment=cfsp_released allocator.round_to=1
  "$@" +experiment=cfsp_released allocator.round_to=1 compensation=least_squares
  "$@" +experiment=cfsp allocator.round_to=1
  for criterion in wanda_sp taylor magnitude chance; do
    for compensation in none least_squares; do
      "$@" criterion=$criterion allocator=uniform compensation=$compensation
    done
  done
  "$@" criterion=wanda_sp allocator=uniform compensation=least_squares compensation.ridge=1e-3 \
    compensation.scale=mean compensation.towards=zero
  "$@" criterion=flap allocator=global_rank compensation=mean
  "$@" criterion=flap allocator=global_rank compensation=least_squares
  "$@" +experiment=refit
  "$@" +experiment=refit criterion=wanda_sp
  [[ $MODEL != gemma* ]] || # it norms what its MLPs give
    "$@" +experiment=refit compensation.ridge=1 compensation.tokens=relative
  "$@" +experiment=refit criterion=wanda_sp allocator=error_curves 'allocator.shares=[0.8]' allocator.batches=1
  "$@" +experiment=obs allocator=cfsp criterion.scale=median compensation.scale=median
  "$@" +experiment=obs_fisher compensation.ridge=auto
}

published() { each_method prune "results/$study/$MODEL" "${short[@]}"; }

validation=("${short[@]}" "${wikitext2[@]}")

# The released CFSP and the best of ours; COMMAND gets the options of one after the other.
each_best() { # COMMAND ...
  "$@" +experiment=cfsp_released allocator.round_to=1
  "$@" +experiment=refit compensation.ridge=1
  "$@" +experiment=refit criterion=wanda_sp compensation.ridge=1
  "$@" +experiment=obs_fisher
  [[ $MODEL != gemma* ]] || "$@" +experiment=refit compensation.ridge=1 compensation.tokens=relative
}

# They, calibrated on the kind of text that is tested.
in_domain() {
  local one=("${validation[@]}" calibration.samples=64)
  local to=results/${study}_in_domain/$MODEL
  each_best prune "$to" "${one[@]}"
  [[ $MODEL != gemma* ]] ||
    prune "$to" "${one[@]}" +experiment=refit compensation.ridge=1 compensation.tokens=relative sparsity=0.2 \
      allocator=error_curves 'allocator.shares=[0.8,0.5]' allocator.batches=1 allocator.compared.positions=64 \
      allocator.rounds=3
}

# Minutes and memory of each plan: a process for each, and nothing from the cache.
cost() {
  local alone=(sparsity=0.3 cache=off evaluation=size)
  each_method prune "results/${study}_cost/$MODEL" "${alone[@]}"
  each_best prune "results/${study}_cost_in_domain/$MODEL" "${wikitext2[@]}" calibration.samples=64 "${alone[@]}"
}

# Do four times as many windows help, and are error curves then better than CFSP's widths?
in_domain_256() {
  local one=("${validation[@]}" calibration.samples=256)
  local to=results/${study}_in_domain_256/$MODEL
  prune "$to" "${one[@]}" +experiment=cfsp_released allocator.round_to=1
  prune "$to" "${one[@]}" +experiment=obs_fisher
  local curves=(+experiment=obs_fisher allocator=error_curves 'allocator.shares=[0.8,0.5,0.2]' allocator.batches=1)
  prune "$to" "${one[@]}" "${curves[@]}"
  prune "$to" "${one[@]}" "${curves[@]}" allocator.rounds=2 sparsity=0.3
}

# MLPs and attention, and whole blocks, which are both: equal sizes.
with_attention() {
  local one=("${short[@]}" 'sites=[mlp,attention]') to=results/${study}_with_attention/$MODEL
  prune "$to" "${one[@]}" criterion=wanda_sp,taylor allocator=uniform compensation=none,least_squares
  prune "$to" "${one[@]}" criterion=magnitude allocator=uniform
  prune "$to" "${short[@]}" criterion=depth allocator=uniform 'sites=[block]' compensation=none,bridge
  prune "$to" "${one[@]}" +experiment=refit criterion=wanda_sp
  prune "$to" "${one[@]}" criterion=flap allocator=global_rank compensation=mean,least_squares
  prune "$to" "${one[@]}" +experiment=ladder
  prune "$to" "${one[@]}" +experiment=ladder allocator.rounds=1 sparsity=0.5
}

# WikiText-2 in windows of 1,024 and 2,048 tokens, C4, and the distance to the dense model.
measured() {
  prune "$full" 'evaluation=[perplexity_text,fidelity]' "${tested[@]}" \
    'evaluation.perplexity_text.window=[1024,2048]' evaluation.perplexity_text.windows="$WINDOWS" \
    "+evaluation.c4={_target_:cfsp.evaluation.perplexity.Perplexity,text:{_target_:cfsp.data.texts.Files,paths:[data/c4/sample_c4-rp2.jsonl],column:text},window:1024,batch_size:2,windows:$WINDOWS}" \
    evaluation.fidelity.windows="$WINDOWS" "$@"
}

# The methods on the sites that "$@" names, each without and with least squares.
methods() {
  measured criterion=chance,magnitude,wanda_sp,flap allocator=uniform compensation=none,least_squares "$@"
  measured criterion=flap allocator=global_rank compensation=mean,least_squares "$@"
  measured criterion=taylor allocator=uniform compensation=none,least_squares "$@"
}

mlp() {
  methods 'sites=[mlp]'
  measured +experiment=cfsp compensation=none,least_squares
  measured +experiment=cfsp_released allocator.round_to=1 compensation=none,least_squares
  measured +experiment=refit
  measured +experiment=obs_fisher compensation.ridge=auto
}

both() {
  methods 'sites=[mlp,attention]'
  measured +experiment=refit criterion=wanda_sp 'sites=[mlp,attention]'
  measured +experiment=obs_fisher compensation.ridge=auto 'sites=[mlp,attention]'
  measured +experiment=ladder
}

depth() { measured criterion=depth allocator=uniform 'sites=[block]' compensation=none,bridge; }

# Every weight that learns sees the same number of tokens of the same text: STEPS batches of BATCH windows of 512.
recovery() {
  local pruned=(sparsity=0.3 +experiment=refit)
  local data=("${pruned[@]}" recovery/data=text recovery.data.held_out=8
    recovery.data.sources.text.text.paths=data/c4/sample_c4-rp1.jsonl)
  measured "${pruned[@]}"
  measured "${data[@]}" recovery=lora,distill recovery.training.max_steps="$STEPS" \
    recovery.training.batch_size="$BATCH" recovery.training.warmup=$((STEPS / 10))
  measured "${data[@]}" recovery=reconstruction recovery.steps="$STEPS" recovery.batch_size="$BATCH" \
    recovery.warmup=$((STEPS / 10))
}

# Equal widths, widths by importance, less attention too, fewer blocks: only shapes matter.
latency() {
  prune "$full" evaluation=latency criterion=wanda_sp allocator=uniform
  prune "$full" evaluation=latency +experiment=cfsp
  prune "$full" evaluation=latency criterion=wanda_sp allocator=uniform 'sites=[mlp,attention]'
  prune "$full" evaluation=latency criterion=depth allocator=uniform 'sites=[block]'
}

zero_shot() {
  local files="boolq:data/zeroshot/boolq.jsonl,piqa:data/zeroshot/piqa.jsonl"
  files+=",hellaswag:data/zeroshot/hellaswag.jsonl,winogrande:data/zeroshot/winogrande.jsonl"
  files+=",arc_easy:data/zeroshot/arc_easy.jsonl,arc_challenge:data/zeroshot/arc_challenge.jsonl"
  files+=",openbookqa:data/zeroshot/openbookqa.jsonl"
  local one=(evaluation=zero_shot evaluation.zero_shot.limit="$QUESTIONS" evaluation.zero_shot.batch_size=16
    "evaluation.zero_shot.files={$files}")
  prune "$full" "${one[@]}" +experiment=refit
  prune "$full" "${one[@]}" +experiment=cfsp_released allocator.round_to=1
  prune "$full" "${one[@]}" criterion=wanda_sp allocator=uniform
}

generation() {
  local files="gsm8k:{test:data/gsm8k/test.jsonl,train:data/gsm8k/train.jsonl},ifeval:data/instructions/ifeval_like.jsonl"
  prune "$full" evaluation=generation evaluation.generation.limit="$QUESTIONS" 'evaluation.generation.tasks=[gsm8k,ifeval]' \
    "evaluation.generation.files={$files}" evaluation.generation.batch_size=16 +experiment=refit
}

every=(mlp both depth recovery latency zero_shot generation)
for argument in "$@"; do
  case $argument in
    published | cost | in_domain | in_domain_256 | with_attention | mlp | both | depth | recovery | latency | zero_shot | generation) parts+=("$argument") ;;
    all) parts+=("${every[@]}") ;;
    *=*) overrides+=("$argument") ;;
    *)
      echo "run.sh: no part $argument; expected published, cost, in_domain, in_domain_256, with_attention, all or some of ${every[*]}, then KEY=VALUE" >&2
      exit 1
      ;;
  esac
done
for part in "${parts[@]:-published}"; do "$part"; done
python experiments/real_models/table.py
