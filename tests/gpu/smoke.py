"""Whether the product works at all on a machine with one GPU: what there is, imports, the whole chain, ranks, tests."""

import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import re
import shutil
import sys
import sysconfig
import traceback
from importlib import metadata
from pathlib import Path

from findings import Findings
from machine import CLOUDJOB, ROOT, WORK, cores

PACKAGES = ("torch", "numpy", "triton", "h5py", "rasterio", "mpi4py", "pydantic", "scikit-image", "scipy", "shapely")
# The tests that mean something with a GPU, of packages that are there. Those marked slow start several ranks, for which
# there is one GPU.
TESTS = ["tests/diffusion", "tests/restoration", "tests/training", "tests/hpc", "tests/stages/test_train.py"]
TESTS += ["tests/benches/test_notebook.py", "tests/patches/test_loader.py"]
NEEDS = {"hdf5plugin": "tests/patches/test_loader.py"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine(found: Findings) -> None:
    """What this machine is."""
    import torch

    found.keep(
        gpu=None,
        cores=cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        disk_free_gib=round(shutil.disk_usage(WORK).free / 2**30),
        shm_gib=round(shutil.disk_usage("/dev/shm").total / 2**30, 1),
        system=platform.release(),
        python=platform.python_version(),
        python_h=Path(sysconfig.get_paths()["include"], "Python.h").exists(),
        compiler=shutil.which("cc") or shutil.which("gcc"),
        mpiexec=shutil.which("mpiexec"),
        cuda=torch.version.cuda,
        versions={name: _version(name) for name in PACKAGES},
    )
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        found.keep(
            gpu=facts.name,
            gpu_gib=round(facts.total_memory / 2**30, 1),
            multiprocessors=facts.multi_processor_count,
            capability=f"{facts.major}.{facts.minor}",
            cudnn=torch.backends.cudnn.version(),
            nccl=".".join(map(str, torch.cuda.nccl.version())),
        )
        found.call("nvidia-smi", seconds=10)


def imports(found: Findings) -> None:
    """Whether all modules import, and what the networks cost."""
    import cloudjob

    failed = {}
    modules = pkgutil.walk_packages(cloudjob.__path__, "cloudjob.")
    names = [module.name for module in modules if not module.name.endswith("__main__")]
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            failed[name] = traceback.format_exc()[-800:]
    found.keep(modules=len(names), failed_imports=failed)
    for preset in ("small", "base"):
        code, said, _ = found.call(*CLOUDJOB, "model", preset, "--json")
        found.keep(**{f"model {preset}": json.loads(said) if code == 0 else said[-500:]})
        if code:
            raise RuntimeError(f"cloudjob model {preset} ended with {code}")
    if failed:
        raise ImportError(", ".join(failed))


def pipeline(found: Findings) -> None:
    """The whole chain by the front door, on the smallest configuration; then again, when nothing must be left to do."""
    from cloudjob.run.folder import RunFolder
    from cloudjob.training import logs

    folder = RunFolder(WORK / "test-run")
    shutil.rmtree(folder.root, ignore_errors=True)
    settings = ("train.precision=auto", "infer.members=2", "evaluate.members=2")
    options = [part for setting in settings for part in ("--set", setting)]
    code, said, seconds = found.call(
        *CLOUDJOB, "run", ROOT / "configs" / "test.yaml", "--run-dir", folder.root, *options, seconds=found.left - 3
    )
    found.keep(
        exit=code,
        seconds=seconds,
        outputs=sorted(path.name for path in folder.root.glob("outputs/*/*"))[:12],
        metrics=logs.rows(folder.metrics)[-1:],
        evaluated=folder.evaluation.exists(),
    )
    if code:
        raise RuntimeError(f"cloudjob run ended with {code}: {said[-1500:]}")
    if found.left > 8:
        code, said, seconds = found.call(*CLOUDJOB, "run", folder.root)
        found.keep(again={"exit": code, "seconds": seconds, "last line": said.strip().splitlines()[-1:]})


def mpi(found: Findings) -> None:
    """Whether two MPI ranks on one GPU write the same bytes as one."""
    root = WORK / "test-run"
    digests = []
    for launcher in ([], ["mpiexec", "-n", "2"]):
        code, said, seconds = found.call(*launcher, *CLOUDJOB, "infer", root, "--force")
        files = sorted(root.glob("outputs/*/*.h5"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files])
        facts = {"exit": code, "seconds": seconds, "files": len(files), "last line": said.strip().splitlines()[-1:]}
        found.keep(**{f"{2 if launcher else 1} ranks": facts})
        if code:
            raise RuntimeError(said[-1500:])
    same = digests[0] == digests[1] and bool(digests[0])
    found.keep(same=same)
    if not same:
        raise RuntimeError("other bytes with two ranks")


def ranks(found: Findings) -> None:
    """Two ranks of a training where there is one GPU: this cannot work; what is said, and after how long."""
    from trainings import small_run

    folder = small_run(WORK / "ranks", "tiny", 64)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    options = ["--set", "train.samples=16", "--set", "train.batch_size=8"]
    code, said, seconds = found.call(*launcher, *CLOUDJOB, "train", folder.root, *options)
    lines = [line for line in said.splitlines() if "cloudjob:" in line or "NCCL" in line]
    found.keep(exit=code, seconds=seconds, traceback="Traceback" in said, lines=lines[:8])


def tests(found: Findings) -> None:
    """The project's own tests of what a GPU computes."""
    left_out = [path for package, path in NEEDS.items() if importlib.util.find_spec(package) is None]
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-n", str(min(8, cores())), "--dist", "loadfile"]
    options += [f"--ignore={path}" for path in left_out]
    chosen = [path for path in TESTS if path not in left_out]
    code, said, seconds = found.call(sys.executable, "-m", "pytest", *options, *chosen, cwd=ROOT)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", said, re.M)
    last = said.strip().splitlines()[-1:]
    found.keep(exit=code, seconds=seconds, last=last, failed=failed[:40], left_out=left_out)
    if code:
        raise RuntimeError(f"pytest ended with {code}: {last}")
