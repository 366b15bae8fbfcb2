"""What tests of several rooms share."""

import fcntl
import gc
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from front_door import CLOUDJOB, CONFIG

gc.disable()  # until all is collected: what is imported stays
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the front door does, which some tests call in this process
# For this process and those it starts: what is installed for the tests alone, and costs each of them.
ABSENT = str(Path(__file__).with_name("absent"))
sys.path.insert(0, ABSENT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ABSENT, os.environ.get("PYTHONPATH"))))
# A busy machine is no fault.
patient = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("machine", hypothesis.settings.default, **patient)
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("machine"), max_examples=10)
SIGNALS = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
LONGEST_FIRST = (
    "test_together",
    *("test_ranks", "test_pipeline", "test_same", "test_resume", "test_compare", "test_evaluate", "test_real_pixels"),
    *("stages/test_shard", "stages/test_train", "test_bench_train", "test_scripts", "test_real_places", "test_review"),
    *("test_docs", "test_real_series", "test_real_triplets", "test_references"),
)


def pytest_configure(config):
    """`make quick` takes fewer examples of a property than `make test`."""
    hypothesis.settings.load_profile("quick" if config.option.markexpr == "not slow" else "machine")


def pytest_collection_modifyitems(items):
    """Files in the order of what they take, so that no worker begins a long one when the other is nearly done."""

    def place(item) -> int:
        name = item.path.with_suffix("").as_posix()
        return next((i for i, end in enumerate(LONGEST_FIRST) if name.endswith(end)), len(LONGEST_FIRST))

    items.sort(key=place)


def pytest_collection_finish():
    """No garbage is looked for in what was imported, and pytest does not visit torch's 50 loggers at each step."""
    gc.collect()
    gc.freeze()
    gc.enable()
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture
def torch_threads():
    """torch's threads are as they were, afterwards."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def forgetful():
    """Nothing is known of the hosts and tokens of earlier tests, whose ports come again; signals mean what they did."""
    for module, name in (("patience", "_known"), ("account", "_kept")):
        if loaded := sys.modules.get(f"cloudjob.copernicus.{module}"):
            getattr(loaded, name).clear()
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Sentinel-2 pixels and recorded answers that lies beside the checkout, where there is one."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder}")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """configs/test.yaml from search to report, by a real process, once for all workers: to be copied, never changed.

    Its standard output lies beside it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, said = shared / "finished", shared / "finished.txt"
    with open(shared / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            command = [*CLOUDJOB, "run", CONFIG, "--run-dir", folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout)
    return folder


@pytest.fixture
def disk(tmp_path):
    """A function that gives a disk of its own so many MiB: (MiB) -> the folder, empty at first, larger when called
    again."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: float) -> Path:
        again = ["-o", "remount"] if folder.is_mount() else ["-t", "tmpfs", "tmpfs"]
        mount = ["mount", *again, "-o", f"size={int(size * 1024)}k", folder]
        if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small tmpfs can be mounted by root alone")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(autouse=True)
def as_loud_as_before():
    """What a command line under test has asked for holds for its own test alone."""
    yield
    if (progress := sys.modules.get("cloudjob.cli.progress")) is not None:
        progress.speak()
