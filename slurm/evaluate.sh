#!/bin/bash
# Scores the outputs beside the baselines, and writes the report:
#   slurm/evaluate.sh [options of sbatch] [CONFIG or run folder] [STAGE] [--set KEY=VALUE]
# STAGE: evaluate or report alone.
#SBATCH --job-name=cloudjob-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[[ -e slurm/common.sh ]] || { echo "cloudjob: start this in the folder that holds slurm/, not in $PWD" >&2; exit 2; }
source slurm/common.sh

begin CPU "score evaluate report" "$@"
submit_myself
what=(run "$config" --from evaluate)
if [[ "$stage" != score ]]; then what=("$stage" "$config"); fi
run "${cloudjob[@]}" "${what[@]}" --run-dir "$run_dir" "${arguments[@]}"
