#!/bin/bash
# Trains on one node with four GPUs, one task per GPU:
#   sbatch slurm/train.sh [CONFIG or run folder] [--set KEY=VALUE]       as it stands below
#   slurm/train.sh --nodes=2 [CONFIG or run folder] ...                  with the options of the site and of sbatch
# CLOUDJOB_SITE names a file of slurm/sites, CLOUDJOB_IMAGE an image. Warned by the clock or by preemption it saves, is
# requeued, and goes on from the last sample seen.
#SBATCH --job-name=cloudjob-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[[ -e slurm/common.sh ]] || { echo "cloudjob: start this in the folder that holds slurm/, not in $PWD" >&2; exit 2; }
source slurm/common.sh

begin TRAIN train "$@"
examine
submit_myself
need_gpu
retry_lost=1
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
# srun's --wait: the ranks end each other, but know nothing of one that could not start. All leave together when all is
# well.
export SLURM_WAIT=${SLURM_WAIT:-30}
ranks --mpi=none -- "${cloudjob[@]}" train "$config" --run-dir "$run_dir" "${arguments[@]}"
