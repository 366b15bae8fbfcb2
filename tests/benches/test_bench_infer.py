"""The bench restores a real scene by real ranks; at a small size here, where its ratios mean nothing."""

import pytest

from cloudjob.benches import infer
from cloudjob.errors import DiskFullError

PHASES = {"opening", "checking", "decoding", "matching", "first guess", "tiles", "blending", "writing"}


@pytest.mark.slow
def test_bench_restores_a_scene_and_keeps_it(tmp_path):
    said: list[str] = []
    found = infer.run(tmp_path, size=720, say=said.append)
    assert said[0].startswith("making a scene of 720 x 720 pixels")
    assert set(found["ratios"]) == {"vs_decode", "vs_notebook", "vs_notebook_without_overlap", "ranks2_vs_1"}
    figures = found["figures"]
    for ranks, each in figures["by_ranks"].items():
        assert set(each["phases"]) == PHASES
        assert len(each["peak_gib"]) == int(ranks)
        assert each["tiles"] > 0
    assert len({each["tiles"] for each in figures["by_ranks"].values()}) == 1
    plain = figures["notebook"]
    assert plain["windows"] > plain["windows_without_overlap"] > 0
    text = infer.table(found)
    assert all(word in text for word in (*PHASES, *found["ratios"]))
    (kept,) = tmp_path.iterdir()
    assert infer._made(kept, 720, said.append) == kept / "run"
    assert len([line for line in said if line.startswith("making")]) == 1


def figures(cpu_s: float, wall_s: float, **phases: float) -> dict:
    return {"cpu_s": cpu_s, "wall_s": wall_s, "phases": {name: {"cpu_s": cpu} for name, cpu in phases.items()}}


def test_ratios_are_those_of_their_names():
    one = figures(100.0, 110.0, **{"decoding": 40.0, "first guess": 2.0, "tiles": 48.0, "writing": 10.0})
    plain = {"steps": 1000, "pass_s": 0.1, "windows": 50, "windows_without_overlap": 5}
    expected = {"vs_decode": 1.25, "vs_notebook": 100.0, "vs_notebook_without_overlap": 10.0}
    assert infer._ratios({"1": one}, 40.0, plain) == expected | {"ranks2_vs_1": None}
    two = figures(104.0, 55.0)
    assert infer._ratios({"1": one, "2": two}, 40.0, plain) == expected | {"ranks2_vs_1": 2.0}


def test_too_small_a_disk_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "_GIB_NEEDED", 10**9)
    with pytest.raises(DiskFullError, match="MiB free"):
        infer.run(tmp_path, size=720)
    assert list(tmp_path.iterdir()) == []
