"""Looks at held-out triplets: their loss, the choice of the moving average, calibration, faults, scores and picture."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cloudjob.diffusion.average import GAMMAS
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA
from cloudjob.scoring import diagnosis, ensembles
from cloudjob.sentinel2.render import true_colour
from cloudjob.training.held_out import HeldOut
from cloudjob.training.settings import Settings

CPU = torch.device("cpu")
PLAIN = Settings(options={}, seed=5, members=4, sampler="heun", steps=3, preview_gain=1.5, precision="float32")


class Triplets:
    """So many triplets of 16 x 16 pixels: ground of 0.5 is seen as 0.55; the first pixel is the number."""

    def __init__(self, count: int, *, reference: bool = True, mask: int | None = None):
        self.count, self.reference, self.asked = count, reference, []
        self.mask = np.full((16, 16), CLEAR if mask is None else mask, np.uint8)
        if mask is None:
            self.mask[:8], self.mask[15] = CLOUD, NO_DATA

    def __len__(self) -> int:
        return self.count

    def evenly(self, number: int) -> tuple[list[int], dict[str, np.ndarray]]:
        self.asked.append(number)
        number = min(number, self.count)
        cloudy = np.full((number, 4, 16, 16), 6500, np.uint16)
        cloudy[:, :, 0, 0] = 1001 + np.arange(number)[:, None]
        arrays = {
            "cloudy": cloudy,
            "clear": np.full((number, 4, 16, 16), 6000, np.uint16),
            "mask": np.tile(self.mask, (number, 1, 1)),
        }
        if self.reference:
            arrays["reference"] = np.full((number, 4, 16, 16), 3000, np.uint16)
            arrays["reference_days"] = np.full(number, 9, np.float32)
        return list(range(number)), arrays


class Numbers:
    """A recipe whose loss is the mean number of the triplets, read off their images, and which restores 0.3."""

    def __init__(self):
        self.calls, self.restored = [], []

    def loss(self, network, batch, *, seed, samples, **options):
        numbers = (batch.cloudy[:, 0, 0, 0] * 1e4 - 1).round()
        assert not torch.is_grad_enabled()
        assert numbers.tolist() == samples
        self.calls.append({"network": network, "seed": seed, "samples": samples, **options})
        return numbers.mean()

    def sampling(self, sampler: str, steps: int) -> dict:
        return {"sampler": sampler, "steps": steps}

    def told(self, network, batch):
        return batch

    def draw(self, network, batch, *, noise, steps, sampler):
        self.restored.append({"steps": steps, "sampler": sampler, "low": torch.is_autocast_enabled("cpu")})
        return torch.full_like(batch.cloudy, 0.3)

    process = None


def held_out(shards=None, settings: Settings = PLAIN, *, instead=None, bfloat16: bool = False) -> HeldOut:
    shards = Triplets(40) if shards is None else shards
    return HeldOut(Numbers(), settings, shards, instead or Triplets(7), CPU, bfloat16=bfloat16)


NETWORK = nn.Linear(1, 1)


# --- loss --------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_mean_over_triplets_however_they_are_taken():
    """Twenty: a part of 16 and one of 4, whose means do not weigh the same."""
    found = held_out()
    assert found.loss(NETWORK, 20) == pytest.approx(9.5)
    assert found.shards.asked == [20]
    calls = found.recipe.calls
    assert [call["samples"] for call in calls] == [list(range(16)), list(range(16, 20))]
    assert found.loss(NETWORK, 5) == 2.0


def test_it_is_that_of_training_but_that_nothing_is_hidden_or_laid_over():
    settings = replace(
        PLAIN, drop_mask=0.4, synthetic_clouds=0.6, drop_reference=0.2, clear_weight=0.3, other_ground=0.7
    )
    found = held_out(settings=settings)
    found.loss(NETWORK, 3)
    (call,) = found.recipe.calls
    assert call["network"] is NETWORK
    assert {name: call[name] for name in call if name not in ("network", "samples")} == {
        "seed": 5,
        "drop_mask": 0,
        "synthetic_clouds": 0,
        "drop_reference": 0.2,
        "clear_weight": 0.3,
        "other_ground": 0.7,
    }


def test_where_nothing_is_held_out_the_training_split_is_looked_at():
    found = held_out(Triplets(0), instead=Triplets(7))
    assert not found.any
    assert found.loss(NETWORK, 20) == 3.0
    assert held_out().any


# --- moving average ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("losses", "best"), [({"0.10": 0.5, "0.05": 0.25}, "0.05"), ({"0.10": 0.25, "0.05": 0.5}, "0.10")]
)
def test_the_moving_average_of_the_lower_loss_is_taken(monkeypatch, losses, best):
    found, said, asked = held_out(), [], []
    monkeypatch.setattr(found, "loss", lambda network, number: asked.append(number) or losses[network])
    for chosen in GAMMAS:
        assert found.best_average(lambda width: width, chosen, said.append) == best
    assert set(asked) == {128}
    assert said[0] == (
        f"train: held-out loss by width of the moving average: {losses['0.10']:.4f} at 0.10, "
        f"{losses['0.05']:.4f} at 0.05; taken: {best}"
    )


@pytest.mark.parametrize(
    ("settings", "shards"),
    [(replace(PLAIN, average="0.10"), Triplets(40)), (PLAIN, Triplets(0))],
    ids=["fixed", "none"],
)
def test_there_may_be_nothing_to_choose(settings, shards):
    def never(width):
        raise AssertionError(width)

    said = []
    assert held_out(shards, settings).best_average(never, "chosen", said.append) == "chosen"
    assert said == []


# --- calibration -------------------------------------------------------------------------------------------------
@pytest.fixture
def calibrated(monkeypatch) -> list:
    calls = []

    def calibrate(restorer, batch, count):
        calls.append(SimpleNamespace(restorer=restorer, batch=batch, count=count))
        return {"factors": [1, 2, 3, 4]}

    monkeypatch.setattr(ensembles, "calibrate", calibrate)
    return calls


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_ensemble_is_calibrated_on_held_out_triplets(calibrated, bfloat16):
    found = held_out(Triplets(100), bfloat16=bfloat16)
    assert found.calibrate(NETWORK) == {"factors": [1, 2, 3, 4]}
    (call,) = calibrated
    assert call.count == 4
    assert len(call.batch) == 64
    assert call.batch.target is not None
    restorer = call.restorer
    assert restorer.network is NETWORK
    assert (restorer.seed, restorer.sampler, restorer.steps, restorer.low_precision) == (5, "heun", 3, bfloat16)


@pytest.mark.parametrize(
    ("changed", "held", "done"),
    [
        ({}, 40, True),
        ({"members": 2}, 40, True),
        ({"members": 1}, 40, False),
        ({}, 0, False),
        ({"process": "regression"}, 40, False),
        ({"steps": 50}, 40, True),
        ({"steps": 51}, 40, False),
    ],
)
def test_where_there_is_an_ensemble_that_does_not_take_long(calibrated, changed, held, done):
    found = held_out(Triplets(held), replace(PLAIN, **changed))
    assert found.calibrate(NETWORK) == ({"factors": [1, 2, 3, 4]} if done else {})
    assert len(calibrated) == done


# --- faults ------------------------------------------------------------------------------------------------------
def test_faults_are_measured_on_sixteen_triplets_and_judged_by_the_share_of_the_training(monkeypatch):
    def diagnose(recipe, network, batch, *, seed):
        assert (network, len(batch), seed) == (NETWORK, 16, 5)
        return {"against_zero": [1.0], "against_shuffled": {"cloudy": 0.5, "reference": 0.5}}

    monkeypatch.setattr(diagnosis, "diagnose", diagnose)
    found = held_out()
    early, late = (found.faults(NETWORK, share=share) for share in (0.04, 0.06))
    assert early == {"against_zero": [1.0], "against_shuffled": {"cloudy": 0.5, "reference": 0.5}, "warnings": []}
    (warning,) = late["warnings"]
    assert warning.startswith("after 6% of the training")


# --- validation --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_scores_are_those_of_the_restored_pixels():
    """Restored as 0.3 and seen as 0.55, where the ground is 0.5."""
    found = held_out()
    row, _ = found.validate(NETWORK)
    assert found.shards.asked == [16]
    assert row["triplets"] == 16
    assert row["loss"] == 7.5
    assert row["cloud_mae"] == pytest.approx(0.2)
    assert row["cloud_psnr"] == pytest.approx(-10 * np.log10(0.04), abs=1e-4)
    assert row["clear_mae"] == pytest.approx(0.05)
    assert row["clear_psnr"] == pytest.approx(-10 * np.log10(0.0025), abs=1e-4)
    assert row["all_mae"] == pytest.approx((8 * 0.2 + 7 * 0.05) / 15)  # rows of pixels; one has no data
    assert set(row) == {"triplets", "loss"} | {
        f"{on}_{name}" for on in ("cloud", "clear", "all") for name in ("psnr", "ssim", "mae")
    }
    assert found.recipe.restored == [{"steps": 3, "sampler": "heun", "low": False}]


def test_pixels_that_there_are_none_of_have_no_score():
    row, _ = held_out(Triplets(3, mask=CLOUD)).validate(NETWORK)
    assert {name.partition("_")[0] for name in row} == {"triplets", "loss", "cloud", "all"}
    assert row["triplets"] == 3


def test_a_perfect_score_is_plain_json():
    class Same(Numbers):
        def draw(self, network, batch, **options):
            return batch.target

    found = held_out(Triplets(3, mask=CLOUD))
    found.recipe = Same()
    row, _ = found.validate(NETWORK)
    assert (row["cloud_mae"], row["cloud_psnr"]) == (0.0, None)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [True, False])
def test_the_picture_shows_the_first_four_triplets(reference):
    shards = Triplets(40, reference=reference)
    _, picture = held_out(shards).validate(NETWORK)
    _, arrays = shards.evenly(4)
    hidden = shards.mask == CLOUD
    restored = np.where(hidden, 4000, arrays["cloudy"]).astype(np.uint16)
    columns = [arrays["cloudy"], *([arrays["reference"]] if reference else []), restored, arrays["clear"]]
    assert picture.shape == (4 * 16, len(columns) * 16 + (len(columns) - 1) * 8, 3)
    for line in range(4):
        for place, images in enumerate(columns):
            shown = picture[16 * line : 16 * (line + 1), 24 * place : 24 * place + 16]
            np.testing.assert_array_equal(shown, true_colour(images[line], gain=1.5))


@pytest.mark.slow
def test_where_restoring_is_slow_there_is_a_loss_alone():
    found = held_out(settings=replace(PLAIN, steps=51))
    row, picture = found.validate(NETWORK)
    assert row == {"triplets": 16, "loss": 7.5}
    assert picture is None
    assert found.recipe.restored == []
    assert held_out(settings=replace(PLAIN, steps=50)).validate(NETWORK)[1] is not None
