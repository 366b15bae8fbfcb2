#!/usr/bin/env bash
# containers/lock.sh: writes cpu.lock and gpu.lock anew, from pyproject.toml and constraints.txt: every package of the
# image, its version, and the hash of its wheel for Python 3.11 on x86_64 Linux with glibc (Debian 12). pip resolves;
# nothing is installed. cpu.lock needs a place where pip finds CPU wheels of torch (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}

lock() { # lock NAME TORCH
    "$python" -m pip install --dry-run --ignore-installed --only-binary :all: --quiet --report - -c constraints.txt \
        "torch===$2" ".[mpi,zstd]" pytest hypothesis xarray h5netcdf "setuptools>=77" |
        "$python" -c '
import json, sys
print(f"# {sys.argv[1]}.lock: the packages of the image. Written by containers/lock.sh for Python 3.11, x86_64 Linux.")
lines = []
for entry in json.load(sys.stdin)["install"]:
    if hashes := entry["download_info"].get("archive_info", {}).get("hashes"):  # cloudjob itself has none
        name = entry["metadata"]["name"].lower()
        lines.append("{}=={} --hash=sha256:{}".format(name, entry["metadata"]["version"], hashes["sha256"]))
print("\n".join(sorted(lines)))
' "$1" >"containers/$1.lock.new"
    mv "containers/$1.lock.new" "containers/$1.lock"
}

version=$(sed -n 's/^torch==//p' constraints.txt)
lock cpu "$version+cpu"
lock gpu "$version"
