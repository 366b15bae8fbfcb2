"""Looks at held-out triplets: their loss, the choice of the moving average, calibration, faults, scores and picture."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import Forked
from small_runs import workspace
from torch import nn

from cloudjob.diffusion.average import GAMMAS
from cloudjob.diffusion.batch import Batch
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA
from cloudjob.run.folder import RunFolder
from cloudjob.scoring import diagnosis, ensembles
from cloudjob.sentinel2.render import true_colour
from cloudjob.training.held_out import HeldOut
from cloudjob.training.settings import Settings

ALONE = ProcessGroup(0, 1, 0, torch.device("cpu"))
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

    def evenly(self, number: int, part: slice = slice(None)) -> tuple[list[int], dict[str, np.ndarray]]:
        self.asked.append(number)
        number = min(number, self.count)
        arrays = self._all(number)
        return list(range(number))[part], {name: array[part] for name, array in arrays.items()}

    def _all(self, number: int) -> dict[str, np.ndarray]:
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
        return arrays


class Numbers:
    """A recipe whose loss is the mean number of the triplets, read off their images, and which restores 0.3."""

    def __init__(self):
        self.calls, self.restored, self.spread = [], [], 0.0

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
        return torch.full_like(batch.cloudy, 0.3) + self.spread * noise(0)

    process = None


def held_out(shards=None, settings: Settings = PLAIN, *, instead=None, bfloat16: bool = False) -> HeldOut:
    shards = Triplets(40) if shards is None else shards
    return HeldOut(Numbers(), settings, shards, instead or Triplets(7), ALONE, bfloat16=bfloat16)


NETWORK = nn.Linear(1, 1)


# --- loss --------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_mean_over_triplets_however_they_are_taken():
    """Six: a part of four and one of two, whose means do not weigh the same."""
    found = held_out()
    assert found.loss(NETWORK, 6) == pytest.approx(2.5)
    assert set(found.shards.asked) == {6}
    calls = found.recipe.calls
    assert [call["samples"] for call in calls] == [[0, 1, 2, 3], [4, 5]]
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
    calls, tally = [], ensembles.tally

    def spy(restorer, batch, numbers, count, **options):
        calls.append(SimpleNamespace(restorer=restorer, batch=batch, numbers=numbers, count=count))
        return tally(restorer, batch, numbers, count, **options)

    monkeypatch.setattr(ensembles, "tally", spy)
    return calls


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_ensemble_is_calibrated_on_held_out_triplets(calibrated, bfloat16):
    found = held_out(Triplets(100), bfloat16=bfloat16)
    found.recipe.spread = 0.1
    calibration = found.calibrate(NETWORK)
    assert [number for call in calibrated for number in call.numbers] == list(range(64))
    assert {(call.count, len(call.batch), len(call.numbers)) for call in calibrated} == {(4, 4, 4)}
    restorer = calibrated[0].restorer
    assert calibration == ensembles.calibrate(restorer, Batch.of(found.shards.evenly(64)[1]), 4)
    assert calibration["factors"] != [1.0] * 4
    assert (calibration["sampler"], calibration["steps"]) == ("heun", 3)
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
    assert bool(found.calibrate(NETWORK)) == bool(calibrated) == done


# --- faults ------------------------------------------------------------------------------------------------------
def test_faults_are_measured_on_sixteen_triplets_and_judged_by_the_share_of_the_training(monkeypatch):
    measured = {"against_zero": [1.0], "x0_error": [1.0], "against_shuffled": {"cloudy": 0.5, "reference": 0.5}}

    def diagnose(recipe, network, batch, *, seed, each):
        assert (network, len(batch), seed, each(str, 2)) == (NETWORK, 16, 5, ["0", "1"])
        return dict(measured)

    monkeypatch.setattr(diagnosis, "diagnose", diagnose)
    found = held_out()
    early, late = (found.faults(NETWORK, share=share) for share in (0.04, 0.06))
    assert early == measured | {"warnings": []}
    (warning,) = late["warnings"]
    assert warning.startswith("after 6% of the training")


# --- validation --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_scores_are_those_of_the_restored_pixels():
    """Restored as 0.3 and seen as 0.55, where the ground is 0.5."""
    found = held_out()
    row, _ = found.validate(NETWORK)
    assert set(found.shards.asked) == {16}
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
    assert found.recipe.restored == [{"steps": 3, "sampler": "heun", "low": False}] * 4


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
    _, draw = held_out(shards).validate(NETWORK)
    picture = draw()
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


# --- shared by ranks ---------------------------------------------------------------------------------------------
PROGRAM = """
import hashlib, json, sys
import torch
from cloudjob.diffusion.recipe import Recipe
from cloudjob.files import read_json
from cloudjob.hpc import distributed
from cloudjob.patches.shards import ShardSet
from cloudjob.run.folder import RunFolder
from cloudjob.training.held_out import HeldOut
from cloudjob.training.settings import Settings

torch.set_num_threads(1)
space = RunFolder(sys.argv[1])
index = space.index()
split = ShardSet(space.shards, index, "train")  # it has more triplets
settings = Settings(options={}, members=3, steps=2, precision="float32")
recipe = Recipe.of("tiny", "corrective", first_guess="similar", deviation=True, **index["normalisation"])

def network(seed):
    torch.manual_seed(seed)
    made = recipe.network().eval()
    for parameter in made.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape)
    return made

said, parts = [], []
with distributed.process_group() as group:
    looks = HeldOut(recipe, settings, split, split, group, bfloat16=False)
    each = looks.sharing.each
    looks.sharing.each = lambda task, number: each(lambda part: parts.append(part) or task(part), number)
    row, draw = looks.validate(network(0))
    validated = len(parts)
    found = [row, looks.faults(network(0), share=0.3), looks.calibrate(network(0))]
    found.append(looks.best_average(lambda width: network(round(100 * float(width))), "0.10", said.append))
    picture = hashlib.sha256(draw().tobytes()).hexdigest() if draw else None
print(json.dumps({"found": [*found, said], "picture": picture, "parts": [validated, len(parts)]}))
"""


def looked(space: RunFolder, size: int) -> list[dict]:
    """What each of so many ranks finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launched = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    command, ranks = [sys.executable, "-c", PROGRAM, str(space.root)], []
    for rank in range(size):
        own = kept | {name: str(value) for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | launched).items()}
        ranks.append(Forked(command, env=own, stdout=subprocess.PIPE, text=True))
    return [json.loads(each.communicate(timeout=300)[0]) for each in ranks]


@pytest.mark.slow
def test_however_many_ranks_share_the_looks_they_find_the_same(tmp_path):
    """To the last digit: loss and scores, faults, calibration, and the losses by which an average is chosen."""
    space = workspace(tmp_path / "run")
    (alone,) = looked(space, 1)
    assert alone["parts"] == [8, 8 + 4 + 4 + 8]  # losses and scores of 16 triplets, repeats, members, two averages
    assert alone["found"][2]["factors"] != [1.0] * 4
    assert len({alone["found"][0][name] for name in ("loss", "cloud_psnr", "clear_ssim", "all_mae")}) == 4
    for size in (2, 3):
        ranks = looked(space, size)
        assert [rank["found"] for rank in ranks] == [alone["found"]] * size
        assert [rank["picture"] for rank in ranks] == [alone["picture"]] + [None] * (size - 1)
        assert np.sum([rank["parts"] for rank in ranks], 0).tolist() == alone["parts"]
        assert max(rank["parts"][1] for rank in ranks) <= alone["parts"][1] / size + 5
