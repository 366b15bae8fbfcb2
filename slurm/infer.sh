#!/bin/bash
# Restores one scene per task of an array, all of it but the writing shared out over MPI ranks, one per GPU:
#   slurm/infer.sh [options of sbatch] [CONFIG or run folder] [--set KEY=VALUE]     sizes the array itself
#   sbatch --array=0-12%4 slurm/infer.sh ...                                        only these scenes, four at a time
#   sbatch slurm/infer.sh ...                                                       all scenes in one task
# CLOUDJOB_SITE names a file of slurm/sites, CLOUDJOB_IMAGE an image. Finished tiles are kept when a task is stopped.
#SBATCH --job-name=cloudjob-infer
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[[ -e slurm/common.sh ]] || { echo "cloudjob: start this in the folder that holds slurm/, not in $PWD" >&2; exit 2; }
source slurm/common.sh

begin GPU infer "$@"
submit_array
need_gpu
kinds=$(srun --mpi=list 2>&1 | sed 's/.*: *//; /^MPI/d' | tr ',\n' '  ' | xargs)
[[ " $kinds " == *" $SITE_MPI "* ]] || die "SITE_MPI=$SITE_MPI: this SLURM has no such kind; it has: $kinds"
code=0
retry_lost=1
# --wait: the ranks end each other, but know nothing of one that could not start, or whose node is gone.
ranks --mpi="$SITE_MPI" --wait=30 -- "${cloudjob[@]}" infer "$config" --run-dir "$run_dir" "${index[@]}" \
    "${arguments[@]}" || code=$?
if ((code == 1 || code > 76)); then
    echo "cloudjob: if MPI did not start: its library must speak SITE_MPI=$SITE_MPI. MPICH, in the image and in .venv," \
        "speaks pmi2, Open MPI speaks pmix. This SLURM has: $kinds" >&2
fi
exit "$code"
