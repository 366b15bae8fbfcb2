#!/bin/bash
# Submits the whole chain from search to report, each stage its own job. What fails in a stage does not keep the others
# from what they can do without it; a stage that made nothing cancels those after it:
#   slurm/pipeline.sh [CONFIG or run folder] [--set KEY=VALUE]
# How many pairs there are is known after review. Until then the last job of the chain is this script again: it submits
# the rest. With SITE_NET=(here) all that needs the network is done at once, where this is started. What is done already
# is not done again, so after a failure the same command goes on.
#SBATCH --job-name=cloudjob-pipeline
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[[ -e slurm/common.sh ]] || { echo "cloudjob: start this in the folder that holds slurm/, not in $PWD" >&2; exit 2; }
source slurm/common.sh

begin CPU pipeline "$@"
examine
export CLOUDJOB_CHAIN=$run_dir/jobs/chain-$$-$EPOCHSECONDS # its jobs, in order
last='' needed='' before=''
after() { # after KIND SCRIPT [options of sbatch] -- STAGE: the next link of the chain, which starts by looking whether
    # the one before has made something. A training makes all or nothing: nobody need start to see that.
    local kind=$1 script=$2 options=()
    shift 2
    while [[ "$1" != -- ]]; do
        options+=("$1")
        shift
    done
    if [[ -n "$last" ]]; then options+=(--dependency="afterany:$last$needed" --kill-on-invalid-dep=yes); fi
    last=$(CLOUDJOB_AFTER=$before submit "$kind" "$script" "${options[@]}" -- "$config" "${@:2}" "${arguments[@]}")
    before=$2
    if [[ $before == train ]]; then needed=,afterok:$last; fi
    echo "$last" >>"$CLOUDJOB_CHAIN"
    echo "job $last: $script ${*:2}"
}
if [[ "${SITE_NET[*]}" == here ]]; then
    code=0
    "${cloudjob[@]}" run "$config" --until download --run-dir "$run_dir" "${arguments[@]}" || code=$?
    ((code == 0 || code == 4)) || exit "$code"
fi
if pairs=$(items shard 2>&1); then
    if [[ "${SITE_NET[*]}" != here ]]; then after NET fetch.sh -- download; fi
    after CPU prepare.sh --array="${pairs##*$'\n'}" -- shard
    after TRAIN train.sh -- train
    after GPU infer.sh --array="$(items infer)" -- infer
    after CPU evaluate.sh -- evaluate
    after CPU evaluate.sh -- report
    next="$run_dir/report/index.html"
elif (($? != 3)) || [[ -n "${SLURM_JOB_ID:-}" ]]; then # 3: there are no pairs yet
    die "${pairs#cloudjob: }"
else
    after NET fetch.sh -- search
    after NET fetch.sh -- preview
    after CPU prepare.sh -- pair
    after CPU prepare.sh -- review
    after CPU pipeline.sh -- pipeline
    next="the rest, submitted by job $last when the pairs are known"
fi
echo "then: $next"
echo "how far it is, and what to do where something failed: cloudjob status $run_dir"
