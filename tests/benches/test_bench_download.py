"""bench download runs, and compares what it says it compares."""

import pytest

from cloudjob.benches import download


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LATENCY", 0.01)
    found = download.run(tmp_path, megabytes=2, say=lambda line: None)
    assert set(found["ratios"]) >= {"vs_curl4", "vs_curl4_full"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["figures"]["memory_mb"] < 150
    assert list(tmp_path.iterdir()) == []
