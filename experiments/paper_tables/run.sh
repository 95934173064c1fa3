#!/usr/bin/env bash
# One table of a paper: every row of conf/experiment/paper/TABLE, one after the other; then what came out.
# A row that fails does not hold up the others; the exit code is 1 then.
#   experiments/paper_tables/run.sh TABLE [OVERRIDES]     TABLE: cfsp, flap, llm_pruner_20, llm_pruner_50
#   experiments/paper_tables/run.sh flap setting=reference      on the embedded model, here
#   experiments/paper_tables/run.sh flap setting=smollm2        on SmolLM2-135M, on a CPU (experiments/real_models)
# RESULTS: the folder of the records (results/paper_tables).
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
table=${1:?expected a table: cfsp, flap, llm_pruner_20 or llm_pruner_50}
rows=(conf/experiment/paper/"$table"/*.yaml)
[[ -e ${rows[0]} ]] || { echo "unknown table $table; expected cfsp, flap, llm_pruner_20, llm_pruner_50" >&2; exit 1; }
shift
results=${RESULTS:-results/paper_tables}

failed=0
for row in "${rows[@]}"; do
  cfsp -m results="$results/$table" "+experiment=paper/$table/$(basename "$row" .yaml)" "$@" || failed=1
done
case $table in
  llm_pruner_*) fields=criterion,criterion.order,recovery ;;  # tuned or not
  *) fields=criterion,allocator ;;
esac
cfsp-tables "$results/$table" --rows "$fields" --metric 'perplexity*'
exit $failed
