"""What a machine offers to a run, probed: Python and its packages, torch, GPU, compiler, MPI, disks. For `doctor`."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cloudjob.errors import CloudjobError
from cloudjob.hpc import launch, machine, mpi

OK, WARN, FAIL = "ok", "warn", "fail"
_OLDEST = (3, 11)
_SHM = 64 * 2**20  # bytes of /dev/shm that MPI and NCCL like to have on a node
_ROOM = 20 * 2**30  # bytes: a small training and a few scenes
_INODES = 20_000  # files of 500 scenes with their records
_SPEAKS = {"MPICH": ("pmi2", "cray_shasta", "pmi1"), "Open MPI": ("pmix",), "Intel": ("pmi2", "pmix")}
_LAUNCHERS = {"HYDRA": "MPICH", "MPICH": "MPICH", "Open MPI": "Open MPI", "OpenRTE": "Open MPI", "Intel": "Intel"}


@dataclass(frozen=True)
class Finding:
    """What a probe found: `words`, and where it is not ok what to do about it."""

    topic: str
    state: str  # ok, warn, fail
    words: str
    cure: str = ""


def quick(run: Path) -> Iterator[Finding]:
    """What takes no time: neither torch nor a compiler is started. `run` need not exist."""
    yield python()
    yield packages()
    yield mpi_library()
    yield shared_memory(Path("/dev/shm"))
    place = next(above for above in (run.absolute(), *run.absolute().parents) if above.is_dir())
    yield from disk(place)
    yield room(place)


def thorough() -> Iterator[Finding]:
    """What takes seconds."""
    yield from torch_and_gpu()
    yield compiler()
    if image := os.environ.get("CLOUDJOB_IMAGE"):
        yield versions_in(image)


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    inside = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    words = f"{version}, {sys.executable}" + (f", in the image {inside}" if inside else "")
    if sys.version_info < _OLDEST:
        return Finding("Python", FAIL, words, "take Python 3.11 or newer: make setup PYTHON=python3.12")
    return Finding("Python", OK, words)


def packages() -> Finding:
    """Those that cloudjob needs, held against the ranges in its own metadata."""
    try:
        wanted = metadata.requires("cloudjob") or []
    except metadata.PackageNotFoundError:
        return Finding("packages", WARN, "cloudjob is not installed, only on the path", "pip install -e .")
    wrong, shown = [], []
    for text in wanted:
        match = re.match(r"([\w.-]+)([^;]*)(;.*extra.*)?$", text)
        if match is None or match[3]:
            continue
        try:
            version = metadata.version(match[1])
        except metadata.PackageNotFoundError:
            wrong.append(f"{match[1]} is missing")
            continue
        shown += [f"{match[1]} {version}"] if match[1] in ("torch", "numpy", "rasterio", "h5py") else []
        wrong += [] if _within(version, match[2]) else [f"{match[1]} {version} is not {match[2].strip()}"]
    if wrong:
        return Finding("packages", FAIL, "; ".join(wrong), f"{sys.executable} -m pip install cloudjob, in its .venv")
    return Finding("packages", OK, ", ".join(sorted(shown)))


def _within(version: str, ranges: str) -> bool:
    def key(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])

    bounds = re.findall(r"(>=|<)\s*([\d.]+)", ranges)
    return all(key(version) >= key(bound) if sign == ">=" else key(version) < key(bound) for sign, bound in bounds)


def mpi_library() -> Finding:
    """Which MPI mpi4py speaks to, and whether mpiexec and srun speak its language."""
    try:
        library = mpi.library()
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        cure = "pip install 'cloudjob[mpi]', or load the site's MPI module; one process needs none"
        return Finding("MPI", WARN, f"mpi4py finds no MPI library ({error})", cure)
    flavour = next((name for name in _SPEAKS if name.lower() in library.lower()), "")
    said, wrong = [library], []
    started = _said(["mpiexec", "--version"])
    if launcher := next((_LAUNCHERS[name] for name in _LAUNCHERS if name in started), ""):
        said.append(f"mpiexec of {launcher}")
        if flavour and launcher != flavour:
            wrong.append(f"take the mpiexec of {flavour}: with {launcher}'s each rank believes to be alone")
    if names := _mpi_kinds(_said(["srun", "--mpi=list"])):
        fits = [kind for kind in _SPEAKS.get(flavour, ()) if kind in names]
        said.append(f"srun --mpi: {' '.join(sorted(names))}")
        if flavour and not fits:
            wrong.append(f"this SLURM speaks none of {', '.join(_SPEAKS[flavour])}: take another MPI, or mpiexec")
        elif fits:
            said.append(f"SITE_MPI={fits[0]}")
    return Finding("MPI", WARN if wrong else OK, ", ".join(said), "; ".join(wrong))


def _mpi_kinds(listed: str) -> set[str]:
    """Those that `srun --mpi=list` names, a line each or all on one, after what ends in a colon; as infer.sh does."""
    lines = [line.rpartition(":")[2].strip() for line in listed.splitlines()]
    return {word for line in lines if not line.startswith("MPI") for word in re.findall(r"\w+", line)}


def shared_memory(place: Path) -> Finding:
    """Through which the ranks of a node exchange what they have, by MPI, gloo and NCCL."""
    cure = f"bind it into the container (--bind {place}), or give it room: docker --shm-size=1g"
    try:
        with tempfile.TemporaryFile(dir=place):
            found = os.statvfs(place)
    except OSError as error:
        return Finding(str(place), WARN, f"cannot be written to ({error.strerror})", cure)
    free = found.f_bavail * found.f_frsize
    return Finding(str(place), WARN if free < _SHM else OK, f"{_size(free)} free", cure if free < _SHM else "")


def disk(place: Path) -> Iterator[Finding]:
    """Whether files can be made, alone and once, as leases need it; and locks, which are not needed."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".cloudjob-doctor-") as folder:
            one, other = Path(folder, "a"), Path(folder, "b")
            os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            alone = _refuses(lambda: os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY)) == errno.EEXIST
            one.replace(other)
            locks = {"flock": _locks(other, fcntl.flock), "fcntl": _locks(other, fcntl.lockf)}
    except OSError as error:
        yield Finding("run folder", FAIL, f"{place}: {error.strerror}", "name one elsewhere with --run-dir")
        return
    if alone:
        yield Finding("run folder", OK, f"{place} can be written to")
    else:
        words = f"{place} lets two processes make the same file: items would have two workers"
        yield Finding("run folder", FAIL, words, "name one on another file system with --run-dir")
    missing = [f"{name}: {os.strerror(why)}" for name, why in locks.items() if why]
    words = ", ".join(missing) or "flock and fcntl work"
    cure = "cloudjob needs no locks; other programs may: HDF5_USE_FILE_LOCKING=FALSE for h5py" if missing else ""
    yield Finding("locking", WARN if missing else OK, words, cure)


def _refuses(call: Callable[[], object]) -> int:
    """The number of the error of the system that a call raises; 0 where it raises none."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def _locks(path: Path, lock: Callable[[int, int], object]) -> int:
    with path.open("r+b") as file:
        return _refuses(lambda: lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB))


def room(place: Path) -> Finding:
    """Free space and inodes, as far as the file system tells; some tell 0."""
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    words = f"{_size(free)} free in {place}"
    cures = ["that is little for bands and restored scenes: clean up, or --run-dir on scratch"] if free < _ROOM else []
    if found.f_files:  # else this file system does not count them
        words += f", {found.f_favail:,} inodes"
        cures += ["a run of 500 scenes has some 20,000 files: ask for more inodes"] * (found.f_favail < _INODES)
    return Finding("free space", WARN if cures else OK, words, "; ".join(cures))


def torch_and_gpu() -> Iterator[Finding]:
    """What torch was built for, which GPUs it sees with which driver, and NCCL."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", FAIL, f"cannot be imported ({str(error).splitlines()[0]})", "make setup, or the image")
        return
    found = torch.cuda.is_available()
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for processors"
    yield Finding("torch", OK, f"{torch.__version__}, {built}, {machine.cores()} cores")
    driver = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).partition("\n")[0].strip()
    try:
        launch.check_gpu(found)
    except CloudjobError as error:
        yield Finding("GPU", FAIL, str(error), "take the GPU image (containers/README.md), start it with --nv")
        return
    if not found:
        words = f"none seen by torch; the driver is {driver}" if driver else "none; computes on processors"
        cure = "torch is built for processors, or for a newer driver: the GPU image" if driver else ""
        yield Finding("GPU", WARN if driver else OK, words, cure)
        return
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    yield Finding("GPU", OK, f"{len(names)} x {names[0]}, driver {driver or 'unknown'}")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    yield Finding("NCCL", OK, version + (f", through {name}" if (name := os.environ.get("NCCL_SOCKET_IFNAME")) else ""))


def compiler() -> Finding:
    """torch.compile builds code with a C++ compiler and Python's headers where it runs."""
    cure = "apt-get install g++ python3-dev, or the image; without it: --set train.compile=false"
    program = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if program is None:
        return Finding("compile", WARN, "no C++ compiler on the PATH", cure)
    headers = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory(prefix="cloudjob-") as folder:
        source = Path(folder, "a.cpp")
        source.write_text("#include <Python.h>\n#include <vector>\n", encoding="utf-8")
        done = _run([program, "-fsyntax-only", f"-I{headers}", str(source)])
    if done is None or done.returncode:
        words = (done.stderr.decode(errors="replace").strip().splitlines() or ["ended"])[0] if done else "no answer"
        return Finding("compile", WARN, f"{program}: {words}", cure)
    return Finding("compile", OK, f"{program}, headers in {headers}")


def versions_in(image: str) -> Finding:
    """The version of cloudjob in the image of the batch scripts, held against this one."""
    from cloudjob import __version__

    if shutil.which("apptainer") is None:
        return Finding("image", FAIL, f"no apptainer to start {image} with", "load its module (SITE_MODULES)")
    inside = _said(["apptainer", "exec", image, "cloudjob", "--version"]).split()  # name, version, (commit)
    if len(inside) < 2:
        return Finding("image", FAIL, f"{image} cannot be started", "apptainer exec IMAGE cloudjob --version says why")
    same = inside[1] == __version__
    cure = "" if same else "build the image of this checkout anew: containers/build.sh"
    return Finding("image", OK if same else WARN, f"{image} has cloudjob {inside[1]}, here is {__version__}", cure)


def _said(command: list[str]) -> str:
    """What a program prints; "" where it is not there, or fails."""
    done = _run(command)
    return (done.stdout + done.stderr).decode(errors="replace") if done and not done.returncode else ""


def _run(command: list[str]) -> subprocess.CompletedProcess | None:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
