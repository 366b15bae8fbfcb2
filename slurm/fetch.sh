#!/bin/bash
# Searches, previews, pairs and downloads, on a node that reaches the network:
#   slurm/fetch.sh [CONFIG or run folder] [STAGE] [--set KEY=VALUE]      here, on a login or transfer node
#   sbatch slurm/fetch.sh ...                                            as a job, where nodes reach the network
# Without STAGE: all from search to download. Bands are fetched of accepted pairs alone; to decide on the pairs by eye
# first: slurm/fetch.sh CONFIG search, then preview, slurm/prepare.sh CONFIG pair, review; then this once more.
#SBATCH --job-name=cloudjob-fetch
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[[ -e slurm/common.sh ]] || { echo "cloudjob: start this in the folder that holds slurm/, not in $PWD" >&2; exit 2; }
source slurm/common.sh

begin NET "fetch search preview download" "$@"
what=(run "$config" --until download)
if [[ "$stage" != fetch ]]; then what=("$stage" "$config"); fi
what+=(--run-dir "$run_dir" "${arguments[@]}")
if [[ -n "${SLURM_JOB_ID:-}" ]]; then run "${cloudjob[@]}" "${what[@]}"; else exec "${cloudjob[@]}" "${what[@]}"; fi
