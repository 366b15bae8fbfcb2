#!/bin/bash
# One part of the check on a machine with one GPU, in the checkout (see README.md):
#   bash tests/gpu/check.sh smoke|bench|train [--cpu] [--only STEP,STEP] [--seconds N]
# Results and logs go to $OUT (default: gpu-out/). Whatever fails is noted there, and the rest goes on.
# --cpu rehearses without a GPU, with small sizes.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.." || exit 2 # the checkout
export OUT=${OUT:-$PWD/gpu-out} PYTHONUNBUFFERED=1 MPLBACKEND=Agg
work=${WORK:-${TMPDIR:-/tmp}/cloudjob-gpu}
mkdir -p "$OUT" "$work"
export WORK=$work TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

python=${PYTHON:-}
if [[ -z $python && -x .venv/bin/python ]]; then python=$PWD/.venv/bin/python; fi
python=$(command -v "${python:-python3}") || { echo "there is no ${PYTHON:-python3}" >&2; exit 2; }
export PATH=${python%/*}:$PATH # where an environment has its mpiexec

# What the interpreter lacks lies in .gpu/ (see pack.py).
site=$work/site
if ! "$python" -c 'import mpi4py, pydantic, rasterio, shapely' 2>/dev/null && [[ -e .gpu/site.tar.xz ]]; then
    if [[ ! -e $site/.whole || .gpu/site.tar.xz -nt $site/.whole ]]; then
        rm -rf "$site"
        mkdir -p "$site"
        if "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' \
            .gpu/site.tar.xz "$site"; then touch "$site/.whole"; else echo "site.tar.xz cannot be unpacked" >&2; fi
    fi
    export PYTHONPATH=$PYTHONPATH:$site
    if [[ -e $site/mpich/lib/libmpi.so.12 ]]; then
        export PATH=$site/mpich/bin:$PATH MPI4PY_LIBMPI=$site/mpich/lib/libmpi.so.12
        export LD_LIBRARY_PATH=$site/mpich/lib:$site/mpich/lib/mpich${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        chmod +x "$site"/mpich/bin/* 2>/dev/null
    fi
fi
exec "$python" "$here/check.py" "$@"
