"""The number of ranks and of micro-batches changes the order of summation, and nothing else."""

import sys

import pytest
import torch
from small_runs import Ranks, workspace

from cloudjob.diffusion import checkpoint
from cloudjob.errors import ConfigError
from cloudjob.training.settings import Settings
from cloudjob.training.step import micro_batch

# The default learning rate: the tests' own, 2.5 times larger, lets rounding grow beyond 1e-5 in 50 steps of 8 samples.
AGREEING = ("train.lr=4e-4", "train.average=none", "evaluate.members=1", "train.decay=false")
DOUBLE = (
    "import sys, torch; from cloudjob.cli.dispatch import main; torch.set_default_dtype(torch.float64); "
    "torch.Tensor.float = torch.Tensor.double; sys.exit(main(sys.argv[1:]))"
)


def trained(folder, size: int, *overrides: str, samples: int = 240, program=None) -> torch.Tensor:
    """All weights of a training by so many ranks on so many samples, as one vector."""
    space = workspace(folder / "run")
    chosen = (*AGREEING, f"train.samples={samples}", *overrides)
    with Ranks(space, size, *chosen, **({"program": program} if program else {})) as ranks:
        assert ranks.wait() == [0] * size, ranks.text()
    state = checkpoint.load(checkpoint.newest(space.checkpoints))
    assert state.seen == samples
    return torch.cat([weight.flatten().double() for weight in state.model.values()])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_more_ranks_and_micro_batches_agree_with_one(tmp_path, size):
    one = trained(tmp_path / "1", 1)
    assert apart(trained(tmp_path / str(size), size), one) < 1e-5
    assert apart(trained(tmp_path / "micro", 1, "train.micro_batch=2"), one) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_in_double_precision_they_agree_to_twelve_digits(tmp_path, size):
    """The same program with every float32 made a float64: what differs is the order of summation."""
    program = (sys.executable, "-c", DOUBLE)
    one, more = (trained(tmp_path / str(ranks), ranks, samples=96, program=program) for ranks in (1, size))
    assert apart(more, one) < 1e-12


@pytest.mark.slow
def test_ranks_that_cannot_share_the_batch_out_evenly_agree_with_one(tmp_path):
    """Of 8 samples the three compute 3, 3 and 2; micro-batches of 2 make that 2 and 1, 2 and 1, 2."""
    one = trained(tmp_path / "1", 1, samples=24)
    assert apart(trained(tmp_path / "3", 3, "train.micro_batch=2", samples=24), one) < 1e-5


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "expected"),
    [
        (8, None, 2, 4),
        (8, 2, 2, 2),
        (8, 6, 4, 2),  # no more than its share
        (250, 8, 4, 8),
        (8, None, 3, 3),  # the largest share
        (8, None, 8, 1),
        (12, 4, 2, 4),
    ],
)
def test_what_a_rank_computes_at_once(batch, micro, ranks, expected):
    assert micro_batch(Settings(options={}, batch_size=batch, micro_batch=micro), ranks) == expected


def test_a_rank_without_a_sample_is_a_mistake():
    with pytest.raises(ConfigError, match=r"batch_size = 4: 5 ranks cannot share it out; start 4 ranks or fewer"):
        micro_batch(Settings(options={}, batch_size=4), 5)
