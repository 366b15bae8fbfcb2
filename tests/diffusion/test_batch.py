import dataclasses

import numpy as np
import pytest
import torch

from cloudjob.diffusion import noise
from cloudjob.diffusion.batch import Batch, pinned, turn
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.sentinel2.radiometry import reflectance

IMAGES = ("cloudy", "mask", "references", "target", "donor")


def arrays(count: int = 3, size: int = 4) -> dict[str, np.ndarray]:
    """As shards give them in training: the clear date 4, -6, 0 days from the cloudy one, the reference 10, 2, -3."""
    rng = np.random.default_rng(0)
    found = {name: rng.integers(1, 65536, (count, 4, size, size), np.uint16) for name in ("cloudy", "clear")}
    found["reference"] = rng.integers(1, 65536, (count, 4, size, size), np.uint16)
    found |= {name: rng.integers(0, 5, (count, size, size), np.uint8) for name in ("mask", "donor")}
    return found | {
        "sun_elevation": np.linspace(10, 30, count, dtype=np.float32),
        "clear_days": np.array([4, -6, 0], np.float32)[:count],
        "reference_days": np.array([10, 2, -3], np.float32)[:count],
    }


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Batch)]
    return all(
        a is b if a is None or b is None else torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) and a.dtype == b.dtype
        for a, b in pairs
    )


# --- from arrays -------------------------------------------------------------------------------------------------
def test_every_field_from_the_arrays_of_shards():
    given = arrays()
    batch = Batch.of(given)
    assert len(batch) == 3
    for name, image in (("cloudy", batch.cloudy), ("clear", batch.target), ("reference", batch.references[:, 0])):
        assert image.dtype == torch.float32
        assert np.array_equal(image.numpy(), reflectance(given[name]), equal_nan=True), name
    assert batch.references.shape == (3, 1, 4, 4, 4)
    for name in ("mask", "donor"):
        assert getattr(batch, name).dtype == torch.uint8
        assert np.array_equal(getattr(batch, name).numpy(), given[name])
    assert batch.sun_elevation.tolist() == [10, 20, 30]
    assert {x.dtype for x in (batch.sun_elevation, batch.reference_days, batch.target_days)} == {torch.float32}


def test_in_training_the_clear_date_is_asked_for_and_days_count_from_it():
    batch = Batch.of(arrays())
    assert batch.target_days.tolist() == [4, -6, 0]
    assert batch.reference_days.tolist() == [[6], [8], [-3]]


def test_scored_the_cloudy_day_is_asked_for_and_days_count_from_it():
    given = arrays()
    batch = Batch.of(given, scored=True)
    assert batch.target_days.tolist() == [0, 0, 0]
    assert batch.reference_days.tolist() == [[10], [2], [-3]]
    plain = {name: value for name, value in given.items() if name != "clear_days"}
    assert same(Batch.of(plain), batch)


def test_of_a_scene_nobody_knows_the_ground_or_what_is_not_given():
    given = {name: value for name, value in arrays().items() if name in ("cloudy", "mask")}
    batch = Batch.of(given)
    assert batch.target is None
    assert batch.donor is None
    assert batch.references.shape == (3, 0, 4, 4, 4)
    assert batch.reference_days.shape == (3, 0)
    assert batch.references.dtype == batch.reference_days.dtype == torch.float32
    assert batch.target_days.tolist() == [0, 0, 0]
    assert batch.sun_elevation.isnan().all()
    assert batch.sun_elevation.shape == (3,)
    with_days = Batch.of(given | {"reference_days": np.float32([1, 2, 3])})
    assert with_days.reference_days.shape == (3, 0), "the days of no reference are none"
    without_days = Batch.of(given | {"reference": arrays()["reference"]})
    assert without_days.reference_days.shape == (3, 1)
    assert without_days.reference_days.isnan().all()


def test_every_digital_number_is_the_reflectance_of_the_radiometry():
    """Bit for bit; 0 is no data."""
    every = np.arange(65536, dtype=np.uint16).reshape(1, 4, 128, 128)
    found = Batch.of({"cloudy": every, "mask": np.zeros((1, 128, 128), np.uint8)}).cloudy.numpy()
    assert np.isnan(found).sum() == np.isnan(found[0, 0, 0, 0]) == 1
    assert np.array_equal(found.view(np.uint32), reflectance(every).view(np.uint32))
    assert found[0, 0, 0, 1000 % 128] != 0
    assert found.flat[1000] == pytest.approx(0, abs=1e-7)
    assert found.flat[11000] == pytest.approx(1)


def test_reflectance_follows_torchs_default_type():
    """Double precision, so that a test tells an error of the computation from one of rounding."""
    torch.set_default_dtype(torch.float64)
    try:
        found = Batch.of({name: value for name, value in arrays().items() if name in ("cloudy", "mask")}).cloudy
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(arrays()["cloudy"] * 1e-4 - 0.1, abs=1e-12)


def test_a_batch_without_a_target_cannot_be_learned_from():
    batch = Batch.of(arrays())
    assert batch.known_target is batch.target
    bare = dataclasses.replace(batch, target=None)
    for asked in ("known_target", "target_valid"):
        with pytest.raises(ValueError, match="without a target"):
            getattr(bare, asked)


def test_page_locked_arrays_have_shape_and_type(monkeypatch):
    plain = torch.empty
    asked = []
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: asked.append(pin_memory) or plain(*a, **k))
    found = pinned((2, 3), np.dtype(np.uint16))
    assert (found.shape, found.dtype, asked) == ((2, 3), np.uint16, [True])


# --- parts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("places", [slice(1, 3), torch.tensor([2, 0])])
def test_some_samples_are_taken_with_all_that_is_theirs(places):
    batch = Batch.of(arrays())
    numbers = list(range(3))[places] if isinstance(places, slice) else places.tolist()
    given = {name: value[numbers] for name, value in arrays().items()}
    assert same(batch[places], Batch.of(given))
    assert len(batch[places]) == 2
    bare = dataclasses.replace(batch, target=None, donor=None)[places]
    assert bare.target is None
    assert bare.donor is None


def test_it_moves_to_a_device_with_all_that_it_has(monkeypatch):
    """Without waiting for it: a GPU copies while the processor goes on."""
    asked, plain = [], torch.Tensor.to

    def to(tensor, *where, **how):
        if where != ("a gpu",):
            return plain(tensor, *where, **how)
        asked.append(how)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = Batch.of(arrays())
    assert asked == []
    assert same(batch.to("a gpu"), batch)
    # All but the light, which is known of clouds that are laid later.
    assert asked == [{"non_blocking": True}] * (
        len(dataclasses.fields(Batch)) - 1
    )  # light is known of clouds laid later
    assert dataclasses.replace(batch, target=None).to("a gpu").target is None
    asked.clear()
    assert same(Batch.of(arrays(), "a gpu"), batch)
    assert asked == [{"non_blocking": True}] * len(arrays())


def test_classes_are_no_data_where_the_cloudy_image_lacks_a_band():
    given = arrays()
    given["cloudy"][1, 2, 3, 0] = 0
    given["cloudy"][2, 0, 1, 1] = 0
    batch = Batch.of(given)
    expected = given["mask"].copy()
    expected[1, 3, 0] = expected[2, 1, 1] = NO_DATA
    assert batch.classes.shape == (3, 1, 4, 4)
    assert np.array_equal(batch.classes[:, 0].numpy(), expected)
    assert np.array_equal(batch.mask.numpy(), given["mask"])


def test_the_target_is_valid_where_it_has_all_bands():
    given = arrays()
    given["clear"][1, 2, 3, 0] = 0
    expected = np.ones((3, 1, 4, 4), bool)
    expected[1, 0, 3, 0] = False
    assert np.array_equal(Batch.of(given).target_valid.numpy(), expected)


# --- turning -------------------------------------------------------------------------------------------------------
SYMMETRIES = {  # of an image (..., n, n), by name
    "as it is": lambda x: x,
    "quarter": lambda x: np.rot90(x, 1, (-2, -1)),
    "half": lambda x: np.rot90(x, 2, (-2, -1)),
    "three quarters": lambda x: np.rot90(x, 3, (-2, -1)),
    "left to right": lambda x: x[..., ::-1],
    "upside down": lambda x: x[..., ::-1, :],
    "transposed": lambda x: x.swapaxes(-1, -2),
    "the other diagonal": lambda x: np.rot90(x.swapaxes(-1, -2), 2, (-2, -1)),
}


def which(before: torch.Tensor, after: torch.Tensor) -> str:
    (name,) = (name for name, turned in SYMMETRIES.items() if np.array_equal(turned(before.numpy()), after.numpy()))
    return name


def many(count: int) -> Batch:
    """Samples of images that no symmetry leaves as they are, of shape (..., 5, 5)."""
    rng = np.random.default_rng(1)
    images = {name: rng.integers(1, 65536, (count, 4, 5, 5), np.uint16) for name in ("cloudy", "clear", "reference")}
    masks = {
        name: rng.permuted(np.tile(np.arange(25, dtype=np.uint8), (count, 1)), axis=1) for name in ("mask", "donor")
    }
    days = {name: rng.uniform(-9, 9, count).astype(np.float32) for name in ("clear_days", "reference_days")}
    return Batch.of(images | {name: mask.reshape(count, 5, 5) for name, mask in masks.items()} | days)


def test_a_sample_is_turned_with_all_its_images_by_one_of_the_eight_symmetries():
    batch, samples = many(100), list(range(100))
    turned = batch.turned(seed=3, samples=samples)
    found = []
    for i in samples:
        (how,) = {which(getattr(batch, name)[i], getattr(turned, name)[i]) for name in IMAGES}
        found.append(how)
    assert set(found) == set(SYMMETRIES)
    assert all(5 <= found.count(name) <= 24 for name in SYMMETRIES)
    for name in ("reference_days", "target_days", "sun_elevation"):
        assert getattr(turned, name) is getattr(batch, name)


def test_a_turn_belongs_to_the_sample_the_seed_and_the_use():
    image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(200, -1, -1, -1)
    samples = list(range(200))
    turned = turn(image, seed=0, samples=samples)
    assert torch.equal(turn(image[:1, 0], seed=0, samples=[7])[0], turned[7, 0])
    assert torch.equal(turn(image, seed=0, samples=samples[::-1]).flip(0), turned)
    assert not torch.equal(turn(image, seed=1, samples=samples), turned)
    assert not torch.equal(turn(image, seed=0, samples=samples, use="turn donor"), turned)
    assert torch.equal(turn(image, seed=0, samples=samples, use="turn"), turned)


def test_which_turn_a_number_draws_is_pinned():
    """A training that a later version goes on with sees the same images: a quarter turn counts 1, a flip after it 4."""
    image = torch.arange(9.0).reshape(1, 3, 3).expand(40, -1, -1)
    turned = turn(image, seed=0, samples=list(range(40)))
    orders = ("as it is", "quarter", "half", "three quarters")
    orders += ("left to right", "the other diagonal", "upside down", "transposed")
    draws = (noise.uniforms(0, list(range(40)), "turn").numpy() * 8).astype(int)
    for one, draw in zip(turned, draws, strict=True):
        assert which(image[0], one) == orders[draw]


def test_what_is_not_there_is_not_turned():
    batch = dataclasses.replace(many(8), target=None, donor=None).without_references()
    turned = batch.turned(seed=3, samples=list(range(8)))
    assert turned.target is None
    assert turned.donor is None
    assert turned.references.shape == (8, 0, 4, 5, 5)
    assert which(batch.cloudy[2], turned.cloudy[2]) == which(batch.mask[2], turned.mask[2])


def test_as_many_numbers_as_samples():
    with pytest.raises(ValueError, match="shorter"):
        many(3).turned(seed=0, samples=[1, 2])


# --- dropping ------------------------------------------------------------------------------------------------------
def chosen(share: float, use: str, seed: int, samples: list[int]) -> np.ndarray:
    return noise.uniforms(seed, samples, use).numpy() < share


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_dropped_reference_goes_with_its_days_and_leaves_the_other_samples(share):
    batch, samples = many(50), list(range(100, 150))
    dropped = batch.drop_references(share, seed=1, samples=samples)
    gone = chosen(share, "drop reference", 1, samples)
    assert gone.sum() == (0 if share == 0 else 50 if share == 1 else pytest.approx(20, abs=9))
    assert dropped.references[gone].isnan().all()
    assert dropped.reference_days[gone].isnan().all()
    assert torch.equal(dropped.references[~gone], batch.references[~gone])
    assert torch.equal(dropped.reference_days[~gone], batch.reference_days[~gone])
    whole = {name: getattr(batch, name) for name in ("references", "reference_days")}
    assert same(dataclasses.replace(dropped, **whole), batch)
    again = batch[torch.arange(49, -1, -1)].drop_references(share, seed=1, samples=samples[::-1])
    assert same(again[torch.arange(49, -1, -1)], dropped)
    assert same(batch.without_references().drop_references(share, seed=1, samples=samples), batch.without_references())


def test_all_references_are_dropped_or_the_last_ones():
    batch = many(20)
    two = dataclasses.replace(
        batch,
        references=batch.references.repeat(1, 2, 1, 1, 1),
        reference_days=torch.cat([batch.reference_days, batch.reference_days + 9], 1),
    )
    dropped = two.drop_references(0.5, seed=0, samples=list(range(20)))
    gone = chosen(0.5, "drop reference", 0, list(range(20)))
    alone = chosen(0.5, "how many references", 0, list(range(20)))
    expected = [[bool(every), bool(every or one)] for every, one in zip(gone, alone, strict=True)]
    assert all(each in expected for each in ([True, True], [False, True], [False, False]))
    assert dropped.references.isnan().all((2, 3, 4)).tolist() == expected
    assert dropped.reference_days.isnan().tolist() == expected


def test_without_references_no_other_date_is_there():
    batch = many(3)
    bare = batch.without_references()
    assert bare.references.shape == (3, 0, 4, 5, 5)
    assert bare.reference_days.shape == (3, 0)
    back = {name: getattr(batch, name) for name in ("references", "reference_days")}
    assert same(dataclasses.replace(bare, **back), batch)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_without_its_mask_every_pixel_with_data_is_unknown(share):
    kinds = torch.tensor([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA], dtype=torch.uint8)
    samples = list(range(100, 150))
    mask = kinds.view(1, 2, 3).expand(50, -1, -1)
    batch = dataclasses.replace(many(50), mask=mask)
    dropped = batch.drop_mask(share, seed=1, samples=samples)
    gone = chosen(share, "drop mask", 1, samples)
    unknown = torch.tensor([UNKNOWN] * 5 + [NO_DATA]).view(2, 3)
    assert dropped.mask.dtype == torch.uint8
    assert (dropped.mask[gone] == unknown).all()
    assert torch.equal(dropped.mask[~gone], mask[~gone])
    assert same(dataclasses.replace(dropped, mask=mask), batch)


def test_a_share_ends_below_its_border():
    """A sample whose draw is the share itself keeps what it has."""
    batch = many(1)
    for drop, use in (("drop_mask", "drop mask"), ("drop_references", "drop reference")):
        draw = noise.uniforms(0, [5], use).item()
        assert same(getattr(batch, drop)(draw, seed=0, samples=[5]), batch)
        assert not same(getattr(batch, drop)(draw + 1e-9, seed=0, samples=[5]), batch)


def test_mask_and_reference_are_dropped_independently():
    samples = list(range(200))
    both = chosen(0.5, "drop reference", 0, samples) & chosen(0.5, "drop mask", 0, samples)
    assert 30 < both.sum() < 70
