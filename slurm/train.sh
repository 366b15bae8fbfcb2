#!/bin/bash
# Trains on one node with four GPUs, one task a GPU:  sbatch slurm/train.sh [CONFIG or run folder]
# Stopped by the clock or by preemption, it saves, is requeued, and goes on from the last sample seen.
# Site settings come from the environment or the command line of sbatch, e.g.
#   SBATCH_ACCOUNT=p123 SBATCH_PARTITION=gpu sbatch --nodes=2 slurm/train.sh runs/north_slope
#   CLOUDJOB_IMAGE=cloudjob.sif sbatch slurm/train.sh          in a container (apptainer on the PATH)
#SBATCH --job-name=cloudjob-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

if [[ "${1:-}" == --help ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
fi
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
config=${1:-configs/north_slope.yaml}
if [[ -d $config ]]; then run_dir=$config; else run_dir=runs/$(basename "$config" .yaml); fi
mkdir -p "$run_dir"
if [[ -n "${CLOUDJOB_IMAGE:-}" ]]; then
    # Not --cleanenv: it strips SLURM_*, and each task would believe to be alone.
    cloudjob=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "$CLOUDJOB_IMAGE" python -m cloudjob)
elif [[ -x .venv/bin/python ]]; then
    cloudjob=("$PWD/.venv/bin/python" -m cloudjob)
else
    cloudjob=(python -m cloudjob)
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it since SLURM 22.05
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
echo "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $SLURM_NTASKS tasks on $SLURM_JOB_NODELIST, $config, $(date -Is)"

# The warning reaches this shell alone; the STOP file reaches every rank, whatever launched it.
rm -f "$run_dir/STOP"
trap 'touch "$run_dir/STOP"' USR1 TERM
# Not --kill-on-bad-exit=1: it would kill a rank that is still saving when another has left with 75.
srun --kill-on-bad-exit=0 --wait=60 "${cloudjob[@]}" train "$config" --run-dir "$run_dir" &
step=$!
code=0
wait "$step" || code=$?
while ((code > 128)) && kill -0 "$step" 2>/dev/null; do # `wait` returns early when the trap fires
    code=0
    wait "$step" || code=$?
done
rm -f "$run_dir/STOP"
if ((code == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
fi
exit "$code"
