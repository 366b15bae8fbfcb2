"""The network of a checkpoint as it restores: where, with what steps, and what its calibration is worth."""

import pytest
import torch
from untrained import untrained

from cloudjob.files import file_sha256
from cloudjob.restoration import network

pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("elsewhere"), steps=2)


def test_it_restores_with_one_thread_what_the_checkpoint_holds(kept):
    model = network.Model.open(kept, local_rank=3, seed=7, sampler="auto", steps=2)
    assert model.sha256 == file_sha256(kept)
    assert (model.factors, model.calibrated, model.warning) == ([1.0, 2.0, 3.0, 0.5], True, "")
    restorer = model.restorer
    assert (restorer.seed, restorer.sampler, restorer.steps, restorer.low_precision) == (7, "auto", 2, False)
    assert torch.get_num_threads() == 1
    assert torch.backends.cudnn.deterministic


def test_factors_that_do_not_hold_for_these_steps_are_not_used(kept):
    model = network.Model.open(kept, local_rank=0, seed=7, sampler="auto", steps=3)
    assert (model.factors, model.calibrated) == ([1.0] * 4, False)
    assert model.warning == (
        "WARNING: /uncertainty is the members' bare deviation: the checkpoint was calibrated for "
        "other steps than 3 of euler"
    )


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"sampler": "euler", "steps": 4}, [1.0, 2.0, 3.0, 4.0]),
        ({"sampler": "euler", "steps": 5}, None),
        ({"sampler": "heun", "steps": 4}, None),
    ],
)
def test_a_calibration_holds_for_its_sampler_and_steps(sampling, expected):
    calibration = {"sampler": "euler", "steps": 4, "factors": [1.0, 2.0, 3.0, 4.0]}
    assert network._factors(calibration, sampling) == expected
    assert network._factors({}, sampling) is None
