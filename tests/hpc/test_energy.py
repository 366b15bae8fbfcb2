"""Counters as Linux and Cray lay them out, in a folder; the estimate where this machine has none."""

import time
from pathlib import Path

import pytest
import torch

from cloudjob.hpc import energy


def package(folder: Path, number: int, microjoules: int) -> Path:
    path = folder / f"intel-rapl:{number}"
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("999999999\n")
    return path


def test_processors_are_counted_over_the_end_of_their_counters(tmp_path):
    assert energy.rapl(tmp_path) is None
    package(tmp_path, 0, 999_000_000)
    package(tmp_path, 1, 5_000_000)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of a processor: it is in the whole already
    joules = energy.rapl(tmp_path)
    before = joules()
    package(tmp_path, 0, 2_000_000)
    package(tmp_path, 1, 6_500_000)
    assert joules() - before == pytest.approx(3 + 1.5, abs=1e-5)


def test_what_may_not_be_read_is_no_counter(tmp_path):
    package(tmp_path, 0, 1).joinpath("energy_uj").unlink()
    assert energy.rapl(tmp_path) is None
    assert energy.cray(tmp_path / "energy") is None


def test_the_counter_of_a_cray_node(tmp_path):
    (tmp_path / "energy").write_text("12345 J 1700000000000000 us\n")
    assert energy.cray(tmp_path / "energy")() == 12345


def test_without_counters_it_is_an_estimate_and_says_so(monkeypatch):
    for name in ("find_spec", "cray", "rapl"):
        monkeypatch.setattr(energy, name, lambda *_: None)
    found = energy.Energy(torch.device("cpu"), cores=2, first_on_node=True)
    begun = time.monotonic()
    time.sleep(0.1)
    assert found.joules() == pytest.approx(2 * energy.CORE_W * (time.monotonic() - begun), rel=0.1)
    assert (found.measured, found.source) == (False, "10 W per core")


def test_a_gpu_that_cannot_be_counted_is_said_to_be_lacking(monkeypatch):
    for name in ("find_spec", "cray", "rapl", "nvml"):
        monkeypatch.setattr(energy, name, lambda *_: None)
    for device, lacking in (("cuda", True), ("cpu", False)):
        found = energy.Energy(torch.device(device), cores=2, first_on_node=True)
        assert (found.lacking, found.measured) == (lacking, False)
    monkeypatch.setattr(energy, "nvml", lambda device: lambda: 7.0)
    assert not energy.Energy(torch.device("cuda"), cores=2, first_on_node=False).lacking


def test_the_whole_node_is_counted_once(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda *_: None)
    monkeypatch.setattr(energy, "cray", lambda: lambda: 1000 * time.monotonic())
    first, second = (energy.Energy(torch.device("cpu"), cores=2, first_on_node=place) for place in (True, False))
    time.sleep(0.02)
    assert first.joules() > 0
    assert second.joules() == 0
    assert first.measured


def test_codecarbon_where_it_is_installed():
    pytest.importorskip("codecarbon")
    found = energy.Energy(torch.device("cpu"), cores=1, first_on_node=True)
    time.sleep(1.5)
    assert found.source == "codecarbon"
    assert found.joules() > 0


def test_grams_follow_from_the_grid():
    assert energy.carbon(3.6e6, 400.0) == {"energy_kwh": 1.0, "co2_g": 400.0}
