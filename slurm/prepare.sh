#!/bin/bash
# Cuts the accepted pairs into shards, one pair a task of an array:
#   slurm/prepare.sh [options of sbatch] [CONFIG or run folder] [STAGE] [--set KEY=VALUE]     sizes the array itself
#   sbatch --array=0-12 slurm/prepare.sh ...                                                  only these pairs
#   sbatch slurm/prepare.sh ...                                                               all in one task
# STAGE: shard (default); pair and review, which are quick, run in one task.
#SBATCH --job-name=cloudjob-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[[ -e slurm/common.sh ]] || { echo "cloudjob: start this in the folder that holds slurm/, not in $PWD" >&2; exit 2; }
source slurm/common.sh

begin CPU "shard pair review" "$@"
index=()
if [[ "$stage" == shard ]]; then submit_array; else submit_myself; fi
run "${cloudjob[@]}" "$stage" "$config" --run-dir "$run_dir" "${index[@]}" "${arguments[@]}"
