#!/usr/bin/env bash
# Five methods at 10 to 70 % of what each of them prunes, three seeds; then the tables.
#   experiments/sparsity_sweep/run.sh [OVERRIDES], e.g. hydra/launcher=joblib hydra.launcher.n_jobs=2
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1  # so that any launcher adds up in the same order
study=sparsity_sweep

cfsp -m results=results/$study cache=results/cache evaluation.perplexity.windows=32 \
  +experiment=cfsp,flap,wanda_sp,llm_pruner,magnitude 'allocator.protect=[]' \
  sparsity=0.1,0.2,0.3,0.4,0.5,0.6,0.7 seed=0,1,2 "$@"

cfsp-tables results/$study --format csv --output results/tables/$study.csv
{
  echo -e "# Five methods at 10 to 70 %\n\nWritten by \`experiments/$study/run.sh\`; see its README for the reading.\n"
  cfsp-tables results/$study
} > results/tables/$study.md
