"""The bench measures the real stage; at a small size here, where its ratios mean nothing."""

import pytest

from cloudjob.benches import shard
from cloudjob.errors import DiskFullError
from cloudjob.hpc import machine

pytestmark = pytest.mark.slow


def test_bench_runs_the_stage_and_proves_the_same_windows(tmp_path):
    found = shard.run(tmp_path, size=768, say=lambda line: None)
    assert set(found["ratios"]) == {"selection_vs_loop", "total_vs_loop", "pair_vs_decode"}
    figures = found["figures"]
    assert figures["same_windows"] is True
    assert figures["windows"] > 0
    assert figures["pair"]["triplets"] > 0
    assert figures["pair"]["peak_gib"] > 0.05
    assert figures["decode_alone"]["cpu_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_GIB_NEEDED", 10**9)
    with pytest.raises(DiskFullError, match="MiB free"):
        shard.run(tmp_path, size=768)
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_named():
    found = machine.describe()
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"]
