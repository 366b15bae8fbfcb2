"""The bench reads what it wrote, in every way; at a small size here, where its ratios mean nothing."""

import pytest

from cloudjob.benches import read
from cloudjob.errors import DiskFullError


@pytest.mark.slow
def test_bench_reads_the_same_pixels_and_leaves_nothing(tmp_path):
    found = read.run(tmp_path, triplets=40, say=lambda line: None)
    assert set(found) == {"ratios", "figures", "machine", "versions"}
    ratios = {"vs_notebook_loader", "vs_memcpy", "threads2_vs_1", "threads2_vs_1_of_memcpy"}
    assert set(found["ratios"]) == ratios
    assert all(value > 0 for value in found["ratios"].values())
    figures = found["figures"]
    assert figures["same_pixels"] is True
    assert figures["triplets"] == 40
    assert set(figures["cold"]) == {"notebook", "one", "eight"}
    assert figures["for_a_node"]["seed"]["h200_needs_triplets_per_s_estimated"] == 2324
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(DiskFullError, match="MiB free"):
        read.run(tmp_path, triplets=10**12)
    assert list(tmp_path.iterdir()) == []
