"""What doctor finds on this machine, and on one that lacks something: real probes of programs and folders."""

import errno
import fcntl
import sys
from pathlib import Path

import pytest

from cloudjob import __version__
from cloudjob.hpc import mpi, probes
from cloudjob.hpc.probes import FAIL, OK, WARN


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that puts a program of this name and text first on the PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def put(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return put


def test_this_python_and_its_packages_are_good(monkeypatch):
    assert probes.python().state == OK
    found = probes.packages()
    assert (found.state, found.cure) == (OK, "")
    assert "torch 2." in found.words
    monkeypatch.setattr(probes, "_OLDEST", (9, 0))
    assert probes.python().state == FAIL


def test_a_package_that_is_missing_or_too_old_is_named(monkeypatch):
    monkeypatch.setattr(probes.metadata, "requires", lambda name: ["no>=1", "numpy>=99,<100", 'x>=1; extra == "a"'])
    found = probes.packages()
    assert found.state == FAIL
    assert found.words.startswith("no is missing; numpy ")
    assert found.words.endswith(" is not >=99,<100")
    assert "pip install" in found.cure


@pytest.mark.parametrize(
    ("version", "ranges", "fits"),
    [("2.6.0+cpu", ">=2.6,<3", True), ("3.0", ">=2.6,<3", False), ("2.32.1", ">=2.32.2,<3", False), ("1", "", True)],
)
def test_ranges(version, ranges, fits):
    assert probes._within(version, ranges) == fits


MPICH, OPEN = "MPICH Version: 5.0.2", "Open MPI v5.0.3, package: Debian"
LISTED = "\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4"


@pytest.mark.parametrize(
    ("library", "mpiexec", "kinds", "state", "words"),
    [
        (MPICH, "HYDRA build details:", "none pmi2 pmix", OK, "SITE_MPI=pmi2"),
        (OPEN, "mpiexec (Open MPI) 5.0.3", "none pmi2 pmix", OK, "SITE_MPI=pmix"),
        (MPICH, "mpirun (Open MPI) 4.1", None, WARN, "take the mpiexec of MPICH"),
        (OPEN, None, "none cray_shasta", WARN, "speaks none of pmix"),
        (
            MPICH,
            None,
            "\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4",
            OK,
            "SITE_MPI=pmi2",
        ),
        (OPEN, None, "...\nsrun: none\nsrun: pmi2", WARN, "speaks none of pmix"),
    ],
)
def test_mpi_against_mpiexec_and_srun(program, monkeypatch, library, mpiexec, kinds, state, words):
    monkeypatch.setattr(mpi, "library", lambda: library)
    program("mpiexec", f"echo '{mpiexec}'" if mpiexec else "exit 1")
    program("srun", f"echo 'MPI plugin types are: {kinds}' >&2" if kinds else "exit 1")
    found = probes.mpi_library()
    assert found.state == state
    assert words in f"{found.words}; {found.cure}"


def test_the_mpi_library_of_this_environment_tells_its_name(monkeypatch, tmp_path):
    assert "MPI" in mpi.library()
    (tmp_path / "mpi4py.py").write_text("raise RuntimeError('cannot load MPI library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probes.mpi_library()
    assert found.state == WARN
    assert "cannot load MPI library" in found.words
    assert "cloudjob[mpi]" in found.cure


def test_a_folder_that_can_be_written_to_has_files_made_once_and_locks(tmp_path):
    folder, locks = probes.disk(tmp_path)
    assert (folder.state, locks.state, locks.words) == (OK, OK, "flock and fcntl work")
    assert list(tmp_path.iterdir()) == []
    (missing,) = probes.disk(tmp_path / "none")
    assert (missing.state, missing.cure) == (FAIL, "name one elsewhere with --run-dir")


def test_a_disk_without_locks_is_good_enough(tmp_path, monkeypatch):
    def refuse(number, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    _, locks = probes.disk(tmp_path)
    assert (locks.state, locks.words) == (WARN, "flock: No locks available")
    assert "needs no locks" in locks.cure


def test_little_room_is_said(tmp_path, disk, monkeypatch):
    small = disk(2)
    found = probes.room(small)
    assert found.state == WARN
    assert "MiB free" in found.words
    assert "clean up" in found.cure
    monkeypatch.setattr(probes, "_ROOM", 0)
    monkeypatch.setattr(probes, "_INODES", 2**62)
    assert probes.room(small).cure == "a run of 500 scenes has some 20,000 files: ask for more inodes"
    monkeypatch.setattr(probes, "_INODES", 0)
    assert probes.room(small).state == OK
    assert probes.shared_memory(small).state == WARN
    assert probes.shared_memory(tmp_path / "none").words.startswith("cannot be written to")


@pytest.mark.slow
def test_torch_says_what_it_computes_on(monkeypatch, program):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    built, gpu, *_ = probes.torch_and_gpu()
    assert built.words.endswith(" cores")
    import torch

    if not torch.cuda.is_available():
        assert (gpu.state, gpu.words) == (OK, "none; computes on processors")
        program("nvidia-smi", "echo 470.1")
        *_, gpu = probes.torch_and_gpu()
        assert (gpu.state, gpu.words) == (WARN, "none seen by torch; the driver is 470.1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        *_, gpu = probes.torch_and_gpu()
        assert (gpu.state, gpu.cure[:18]) == (FAIL, "take the GPU image")


def test_a_compiler_without_headers_or_none_at_all(program, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    program("g++", "echo 'a.cpp:1: fatal error: Python.h: No such file' >&2; exit 1")
    found = probes.compiler()
    assert found.state == WARN
    assert "Python.h: No such file" in found.words
    assert "train.compile=false" in found.cure
    program("g++", "exit 0")
    assert probes.compiler().state == OK
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.compiler().words == "no C++ compiler on the PATH"


def test_the_image_and_this_checkout_are_held_against_each_other(program, monkeypatch, tmp_path):
    program("apptainer", f"echo cloudjob {__version__}")
    assert probes.versions_in("a.sif").state == OK
    program("apptainer", "echo cloudjob 0.0.1")
    assert probes.versions_in("a.sif").words == f"a.sif has cloudjob 0.0.1, here is {__version__}"
    program("apptainer", "exit 255")
    assert probes.versions_in("a.sif").words == "a.sif cannot be started"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.versions_in("a.sif").state == FAIL
    monkeypatch.setenv("APPTAINER_CONTAINER", "/a.sif")
    assert f"{sys.executable}, in the image /a.sif" in probes.python().words
