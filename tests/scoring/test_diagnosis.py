import batches
import pytest
import torch

from cloudjob.diffusion.conditions import CHANNELS as TABLES
from cloudjob.diffusion.conditions import channel_count
from cloudjob.diffusion.processes import Terms
from cloudjob.diffusion.recipe import Recipe
from cloudjob.scoring import diagnosis
from cloudjob.scoring.diagnosis import diagnose, warnings

CHANNELS = TABLES["similar"]
CONDITION_CHANNELS = channel_count("similar")

WIDTHS = [width for width, _ in CHANNELS.values()]


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    clear = 0.5 + 0.1 * torch.randn(6, 4, 16, 16)
    mask = torch.zeros(6, 16, 16, dtype=torch.uint8)
    mask[:, :, :8] = 1
    cloudy = torch.where(mask[:, None] > 0, 0.9, clear)
    return batches.batch(cloudy, mask, target=clear, reference=clear + 0.05 * torch.randn_like(clear))


# --- what is measured --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", ["corrective", "residual", "ddpm", "ddpm-residual", "regression"])
def test_an_untrained_network_is_as_good_as_zero_and_looks_at_nothing(batch, process):
    recipe = Recipe.of("tiny", process, mean=[0.5] * 4, std=[0.2] * 4, first_guess="similar")
    found = diagnose(recipe, lambda x, level, channels: 0 * channels[:, :4], batch, seed=0)
    assert all(value is None or value == pytest.approx(1) for value in found["against_zero"])
    assert found["against_shuffled"] == pytest.approx({"cloudy": 1, "mask": 1, "reference": 1})
    early = 0.05 if process.startswith("ddpm") else 0.25  # one that is noise, not a first guess, without learning
    assert "noise" in warnings(found, share=early)[0]
    assert not warnings(found, share=early - 0.01)


def test_what_a_network_looks_at_is_found(batch):
    """This one gives the reference of its channels as the ground, which is right, and not that of another sample."""
    recipe = Recipe.of("tiny", "ddpm", mean=[0.5] * 4, std=[0.2] * 4, first_guess="similar", prediction="x0")
    found = diagnose(recipe, lambda x, level, channels: channels[:, 8:12], batch, seed=0)
    assert max(found["against_zero"]) < 0.5
    assert found["x0_error"] == pytest.approx([0.25] * 3, rel=0.1)  # 0.05 of the reference over a deviation of 0.2
    assert found["against_shuffled"]["reference"] < 0.5
    assert found["against_shuffled"]["cloudy"] == pytest.approx(1)
    (said,) = warnings(found, share=0.5)
    assert "another sample's cloudy does" in said


def test_every_condition_is_exchanged_for_a_network_that_is_asked_as_in_training(batch):
    """Images, noise levels and channels, in this order, whichever condition is another sample's."""
    recipe = Recipe.of("tiny", "ddpm", mean=[0.5] * 4, std=[0.2] * 4, first_guess="similar", prediction="x0")
    asked = []

    def network(x, level, channels):
        asked.append((x.shape[1:], level.ndim, channels.shape[1]))
        return channels[:, 8:12]

    diagnose(recipe, network, batch, seed=0, repeats=1)
    assert asked == [((4, 16, 16), 1, CONDITION_CHANNELS)] * 4


class Told:
    """A recipe of two terms, of which the first has the errors, scales, weights and levels that are given for its
    sample, and the second is right but at level 1."""

    first_guess = "similar"

    def __init__(self, levels: list[float]):
        self.levels, self.samples = levels, []

    def conditions(self, batch):
        return None

    def terms(self, network, batch, *, seed, samples, conditions):
        self.samples.append((seed, samples))
        level = torch.tensor([self.levels[sample] for sample in samples])
        number = torch.tensor(samples, dtype=torch.float32).view(-1, 1, 1, 1)
        told = torch.arange(float(len(samples))).view(-1, 1, 1, 1) + 10 * torch.arange(CONDITION_CHANNELS).view(
            1, -1, 1, 1
        )
        output = network(None, level, told.expand(-1, -1, 2, 2))
        target = torch.full((len(samples), 4, 2, 2), 2.0)
        scale, weight = 3 + number, 1 / (1 + number)
        one = torch.ones(len(samples))
        return [Terms(output, target, level, scale, weight), Terms(target, target, one, scale=1.0)]


def valid_batch(count: int):
    """Of the target's four pixels the last has no data."""
    target = torch.ones(count, 4, 2, 2)
    target[:, 1, 1, 1] = torch.nan
    return batches.batch(torch.ones(count, 4, 2, 2), torch.ones(count, 2, 2, dtype=torch.uint8), target=target)


def test_ratios_by_thirds_of_the_levels_by_hand():
    """An output of 3 against a target of 2: an error of 1, that of zero is 4; a pixel in four has no data."""
    recipe = Told([0.0, 0.3333, 0.334, 0.666, 0.667, 1.0])
    found = diagnose(
        recipe, lambda x, level, channels: torch.full((2, 4, 2, 2), 3.0), valid_batch(2), seed=7, repeats=3
    )
    assert sorted({tuple(samples) for _, samples in recipe.samples}) == [(0, 1), (2, 3), (4, 5)]
    assert {seed for seed, _ in recipe.samples} == {7}
    assert len(recipe.samples) == 3 * 4
    high = 0.75 * 4 * (1 / 5 + 1 / 6)
    assert found["against_zero"] == pytest.approx([0.25, 0.25, 0.25 * high / (high + 6 * 0.75 * 4)])
    mean = [0.75 * (9 + 16) / 2, 0.75 * (25 + 36) / 2, 0.75 * (49 + 64 + 6 * 0) / 8]
    assert found["x0_error"] == pytest.approx([value**0.5 for value in mean])


def test_by_default_each_triplet_is_looked_at_four_times_and_a_third_may_be_empty():
    recipe = Told([0.5] * 8)
    found = diagnose(recipe, lambda x, level, channels: torch.zeros(2, 4, 2, 2), valid_batch(2), seed=0)
    assert len(recipe.samples) == 4 * 4
    assert found["against_zero"][0] is None
    assert found["x0_error"][0] is None
    assert found["against_zero"][1] == 1


def test_a_condition_is_exchanged_with_the_next_samples_in_all_its_channels_and_no_others():
    """The error is that of the sum over a condition's channels, which is another sample's where it is exchanged."""
    seen = []

    def network(x, level, channels):
        seen.append(channels[:, :, 0, 0])
        return channels[:, :4] * 0 + 2 + (len(seen) % 4 != 1)  # right with the own conditions, else off by 1

    found = diagnose(Told([0.5] * 3), network, valid_batch(3), seed=0, repeats=1)
    parts = {"cloudy": ("cloudy", "difference"), "mask": ("cloud", "shadow", "unknown")}
    parts["reference"] = ("reference", "present", "anchor")
    own, *exchanged = seen
    for channels, names in zip(exchanged, parts.values(), strict=True):
        told = zip(CHANNELS, own.split(WIDTHS, 1), channels.split(WIDTHS, 1), strict=True)
        for name, plain, other in told:
            assert torch.equal(other, plain.roll(1, 0) if name in names else plain), name
    assert found["against_shuffled"] == {"cloudy": 0, "mask": 0, "reference": 0}


def test_the_ratio_to_another_samples_condition_by_hand():
    """Right but by 1 with the own conditions, by 2 with another's: a quarter of the squared error."""
    calls = []

    def network(x, level, channels):
        calls.append(1)
        return channels[:, :4] * 0 + (3 if len(calls) % 4 == 1 else 4)

    found = diagnose(Told([0.5] * 6), network, valid_batch(3), seed=0, repeats=2)
    assert found["against_shuffled"] == pytest.approx({"cloudy": 0.25, "mask": 0.25, "reference": 0.25})
    calls.clear()
    right = diagnose(Told([0.5] * 3), lambda *_: torch.full((3, 4, 2, 2), 2.0), valid_batch(3), seed=0, repeats=1)
    assert right["against_shuffled"] == {"cloudy": 1, "mask": 1, "reference": 1}, "no error at all tells nothing"


# --- what is said of it ------------------------------------------------------------------------------------------
def found(levels: list, cloudy: float = 0.5, reference: float = 0.5, error: float = 0.5) -> dict:
    shuffled = {"cloudy": cloudy, "mask": 1.0, "reference": reference}
    errors = [None if level is None else error for level in levels]
    return {"against_zero": levels, "x0_error": errors, "against_shuffled": shuffled}


@pytest.mark.parametrize(
    ("levels", "share", "said"),
    [
        ([0.98, 0.98, 0.98], 0.05, "that of an output of zero (0.98 of it)"),
        ([0.98, None, 1.2], 0.05, "after 5% of the training the loss still is that of an output of zero (0.98 of it)"),
        ([0.98, 0.98, 0.98], 0.049, None),
        ([0.97, 0.98, 0.98], 0.05, None),
        ([0.98, 0.98, 0.97], 0.05, None),
        ([0.98, 0.98, 0.97], 0.25, "after 25% of the training nothing is learned at low noise (0.98 of the loss"),
        ([None, 0.98, 0.5], 0.25, "nothing is learned at low noise (0.98"),
        ([0.98, 0.98, 0.97], 0.249, None),
        ([0.97, 0.98, 0.98], 0.25, None),
        ([0.97, 0.5, 0.2], 1.0, None),
    ],
)
def test_warnings_at_their_borders(levels, share, said):
    heard = warnings(found(levels, error=1.0), share=share)
    assert len(heard) == (said is not None)
    assert said is None or said in heard[0]


@pytest.mark.parametrize(("error", "share", "said"), [(0.99, 0.249, 0), (0.99, 0.25, 1), (1.0, 0.05, 1)])
def test_a_good_first_guess_takes_its_time_to_be_bettered(error, share, said):
    assert len(warnings(found([0.98, 0.98, 0.98], error=error), share=share)) == said


@pytest.mark.parametrize(("error", "said"), [(0.03, 0), (0.031, 1)])
def test_noise_below_the_sensors_is_nothing_to_warn_of(error, said):
    assert len(warnings(found([0.99, 0.98, 0.97], error=error), share=0.5)) == said


def test_an_error_weighs_less_where_the_network_tells_that_it_is_large():
    """Errors of 2 and targets of 4 where the network is sure, 1 and 1 where its deviation is 10."""

    class Sure(Told):
        def terms(self, network, batch, *, seed, samples, conditions):
            sure = torch.zeros(1, 4, 2, 2)
            sure[..., 0, :] = 1
            deviation = 10 - 9 * sure
            terms = Terms(2 * sure, 1 + 3 * sure, torch.ones(1), scale=1.0, log_deviation=deviation.log())
            return [terms]

    whole = batches.batch(torch.ones(1, 4, 2, 2), torch.ones(1, 2, 2, dtype=torch.uint8), target=torch.ones(1, 4, 2, 2))
    ratio = diagnose(Sure([]), None, whole, seed=0, repeats=1)["against_zero"][2]
    assert ratio == pytest.approx((4 + 0.01) / (16 + 0.01))


@pytest.mark.parametrize(
    ("cloudy", "reference", "share", "said"),
    [
        (0.9951, 0.5, 0.25, "another sample's cloudy does as well"),
        (0.5, 1.0, 0.25, "another sample's reference does as well"),
        (1.0, 1.0, 0.25, "another sample's cloudy and reference does as well"),
        (1.0, 1.0, 0.249, None),
        (0.995, 0.995, 1.0, None),
    ],
)
def test_a_condition_that_is_not_looked_at_is_named_at_the_border(cloudy, reference, share, said):
    heard = warnings(found([0.5, 0.5, 0.5], cloudy, reference), share=share)
    assert len(heard) == (said is not None)
    assert said is None or said in heard[0]


def test_both_may_be_said():
    heard = warnings(found([0.98, 0.5, 0.5], 1.0), share=0.3)
    assert ["layer of noise" in heard[0], "another sample's" in heard[1]] == [True, True]
    assert len(warnings(found([0.99, 0.99, 0.99], 1.0), share=0.3)) == 2


def test_what_is_exchanged_are_conditions_of_the_table():
    assert {name for parts in diagnosis._USED.values() for name in parts} <= set(CHANNELS)
