"""A real SLURM and a real image for the tests of this folder; without them the tests are skipped, loudly."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import Cluster, why_not

ROOT = Path(__file__).resolve().parents[2]
# Trained for seconds: 48 steps of 8 small samples, one thread a rank so that all sums have one order.
SETTINGS = {
    "train.samples": "384",
    "train.warmup": "80",
    "train.checkpoint_s": "0.2",
    "infer.steps": "4",
    "evaluate.members": "1",
}
SITE = """
SITE_JOB=(--time=30)
SITE_CPU=(--cpus-per-task=1)
SITE_GPU=(--ntasks-per-node=2 --cpus-per-task=1 --gres=gpu:2)
SITE_TRAIN=(--nodes=2)
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(f"NO SLURM: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is told to stop stops the cluster too
    try:
        cluster.start()
        yield cluster
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice: this is not to be cut short
        cluster.stop()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """A function that builds Apptainer.def of a folder: (IMAGE, base, folder) -> CompletedProcess."""
    if reason := why_no_image():
        pytest.skip(f"NO IMAGE: {reason}; run tests/cluster/install.sh as root")
    scratch = tmp_path_factory.mktemp("apptainer")
    env = {**os.environ, "APPTAINER_CACHEDIR": str(scratch / "cache"), "APPTAINER_TMPDIR": str(scratch)}

    def build(image: Path, base: Path, folder: Path = ROOT) -> subprocess.CompletedProcess:
        options = [f"--build-arg={part}" for part in ("LOCK=cpu", "BOOTSTRAP=localimage", f"FROM={base}")]
        command = [folder / "containers" / "build.sh", image, *options]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200, check=False)

    return build


def why_no_image() -> str:
    """What keeps an image from being built here; "" where it can be."""
    missing = [name for name in ("apptainer", "debootstrap", "mksquashfs") if not shutil.which(name)]
    return f"no {', '.join(missing)}" if missing else "not root" if os.geteuid() else ""


def needs_image(item) -> bool:
    return item.path.parent == Path(__file__).parent and "image" in item.fixturenames


def pytest_collection_modifyitems(items):
    """What needs no image comes first: meanwhile it is built."""
    items.sort(key=needs_image)


@pytest.fixture(scope="session", autouse=True)
def building(request, tmp_path_factory):
    """The image of this checkout in the making: a Future of its path. None where nobody needs one built."""
    with ThreadPoolExecutor(1) as pool:
        ready = os.environ.get("CLOUDJOB_TEST_IMAGE") or why_no_image()
        if ready or not any(map(needs_image, request.session.items)):
            yield None
        else:
            build = request.getfixturevalue("build")
            yield pool.submit(_built, build, tmp_path_factory.mktemp("image") / "cloudjob.sif")


@pytest.fixture(scope="session")
def image(request, building) -> Path:
    """The image of this checkout, or what CLOUDJOB_TEST_IMAGE names."""
    if ready := os.environ.get("CLOUDJOB_TEST_IMAGE"):
        return Path(ready)
    request.getfixturevalue("build")  # says what is missing
    return building.result()


def _built(build, path: Path) -> Path:
    """On a Debian base that is kept in build/."""
    base = ROOT / "build" / "base"
    begun = time.monotonic()
    if not base.exists():
        sources = Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")
        lines = [line for source in sources if source.exists() for line in source.read_text().splitlines()]
        words = " ".join(line for line in lines if not line.lstrip().startswith("#")).split()
        mirror = next(word for word in words if word.startswith(("http://", "https://")))
        shutil.rmtree(f"{base}.new", ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", f"{base}.new", mirror], check=True)
        os.replace(f"{base}.new", base)
    middle = time.monotonic()
    done = build(path, base)
    print(done.stdout[-20000:], done.stderr[-5000:])
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"base {middle - begun:.0f} s, image {time.monotonic() - middle:.0f} s")
    return path


class Home:
    """A checkout as a user has it: scripts, configurations, runs, and the program with or without the image."""

    def __init__(self, folder: Path, cluster: Cluster, image: Path | None):
        self.folder, self.cluster = folder, cluster
        folder.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        shutil.copytree(ROOT / "configs", folder / "configs")
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "slurm" / "sites" / "here.env").write_text(SITE)
        self.env = {"CLOUDJOB_SITE": "here", "CLOUDJOB_ON_CPU": "1", "OMP_NUM_THREADS": "1"}
        if image:
            self.env["CLOUDJOB_IMAGE"] = str(image)

    def call(self, *command, check: bool = True, **env) -> subprocess.CompletedProcess:
        return self.cluster.call(*command, check=check, cwd=self.folder, env=self.env | env, timeout=300)

    def submit(self, script: str, *arguments, **env) -> str:
        """Starts slurm/<script>, which submits itself with the options of the site; the id of the job."""
        return self.call(f"slurm/{script}", *arguments, **env).stdout.partition("as job ")[2].split()[0]

    def sbatch(self, *arguments, **env) -> str:
        return self.call("sbatch", "--parsable", *arguments, **env).stdout.strip()

    def status(self, run: str) -> str:
        """What it says; it ends with 4 while a failure is recorded."""
        return self.call(Path(sys.prefix) / "bin" / "cloudjob", "status", run, check=False).stdout

    def log(self, job: str) -> str:
        """All that a job has logged, the tasks of an array one after the other."""
        found = sorted([*self.folder.glob(f"*-{job}.out"), *self.folder.glob(f"*-{job}_*.out")])
        return "".join(path.read_text(errors="replace") for path in found)

    def replace_program(self, lines: str) -> None:
        """A shell script stands in for cloudjob, as this home finds it without an image."""
        program = self.folder / ".venv" / "bin" / "cloudjob"
        (self.folder / ".venv").unlink()
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)

    def copy(self, run: Path, name: str, *, without: tuple[str, ...]) -> Path:
        """A copy of a finished run in which these stages have never run."""
        target = self.folder / "runs" / name
        shutil.copytree(run, target, ignore=lambda folder, names: ["jobs"] if Path(folder) == run else [])
        folders = {"infer": "outputs", "train": "train", "evaluate": "evaluation", "report": "report"}
        for stage in without:
            shutil.rmtree(target / "records" / stage, ignore_errors=True)
            shutil.rmtree(target / folders[stage], ignore_errors=True)
        return target


@pytest.fixture(scope="session")
def home(cluster, tmp_path_factory) -> Home:
    return Home(tmp_path_factory.mktemp("home") / "venv", cluster, None)


@pytest.fixture(scope="session")
def image_home(cluster, image, tmp_path_factory) -> Home:
    return Home(tmp_path_factory.mktemp("home") / "image", cluster, image)


def sets() -> list[str]:
    return [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """The small run without SLURM and without the image; trained by four ranks of torch.distributed on this machine."""
    run = tmp_path_factory.mktemp("plain") / "test"
    program = [sys.executable, "-m", "cloudjob"]
    options = [str(ROOT / "configs" / "test.yaml"), "--run-dir", str(run), *sets()]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*program, "run", *options, "--until", "shard"], check=True, env=env)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([*program, "train", *options], env=env | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(4)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0] * 4
    subprocess.run([*program, "run", *options, "--from", "infer"], check=True, env=env)
    return run
