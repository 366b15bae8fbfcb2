"""The bench measures the real step, loader and training; at a small size here, where its ratios mean nothing."""

import pytest
import torch

from cloudjob.benches import train
from cloudjob.config import source
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import DiskFullError

pytestmark = pytest.mark.slow


def test_bench_measures_every_part_and_leaves_nothing(tmp_path):
    found = train.run(tmp_path, window=64, presets=("tiny",), rounds=1, say=lambda line: None)
    assert set(found) == {"ratios", "figures", "machine", "versions"}
    assert set(found["ratios"]) == {"ranks2_vs_1", "step_vs_notebook"}
    assert found["ratios"]["step_vs_notebook"] > 0
    figures = found["figures"]
    (steps,) = figures["steps"]
    assert steps["flop_per_sample"] > 3e8
    assert all(row["samples_per_s"] > 0 for row in steps["by_precision_and_batch"])
    assert figures["training_by_ranks"][0]["ranks"] == 1
    assert figures["for_this_node"]["loader_threads"] in (1, 2, 4)
    assert "use train.precision=" in train.table(found)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_said_before_anything_is_made(tmp_path):
    with pytest.raises(DiskFullError, match="MiB free"):
        train.run(tmp_path, window=10**6)
    assert list(tmp_path.iterdir()) == []


def test_the_step_is_that_of_a_training_by_the_default_configuration(tmp_path, torch_threads):
    folder = train.make_run(tmp_path, 64, "tiny")
    chosen = source.load(folder.config)[0].train
    bench = train.Bench(folder, torch.device("cpu"), 1)
    for process in (chosen.process, "residual"):
        step = bench.step("tiny", batch_size=2, **({} if process == chosen.process else {"process": process}))
        options = chosen.model_copy(update={"process": process}).options()
        expected = Recipe.of("tiny", process, **(bench.index["normalisation"] | options))
        found = step.alone.recipe.facts()
        assert {name: found[name] for name in options} == options
        shapes = (
            {name: each.shape for name, each in net.state_dict().items()} for net in (step.network, expected.network())
        )
        assert next(shapes) == next(shapes)
    assert options != chosen.options()
