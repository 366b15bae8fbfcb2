"""Blending: tiles that disagree leave no seam, clear pixels stay bit for bit, nothing changes outside of the mask."""

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.restoration import blend
from cloudjob.restoration.blend import BLENDED_EDGE, OBSERVED, RECONSTRUCTED, Feather, mosaic
from cloudjob.restoration.tiles import Tile, tiles
from cloudjob.scoring.metrics import seam_index
from cloudjob.sentinel2 import masks


def saved(folder: Path, places: list[Tile], images) -> list[tuple[Tile, Path]]:
    """Each tile with the file of its members (M, 4, h, w)."""
    parts = []
    for number, (tile, image) in enumerate(zip(places, images, strict=True)):
        path = folder / f"{number}.npy"
        np.save(path, image)
        parts.append((tile, path))
    return parts


def constant(*values: int, size: int = 64) -> np.ndarray:
    """Members (M, 4, size, size) of one value each, band b brighter by b."""
    bands = np.arange(4, dtype=np.uint16)[:, None, None]
    return np.stack([value + bands + np.zeros((size, size), np.uint16) for value in values]).astype(np.uint16)


# --- mosaic ------------------------------------------------------------------------------------------------------
def test_between_two_tiles_that_disagree_the_one_fades_into_the_other(tmp_path):
    places = tiles((64, 96), size=64, overlap=32)
    mean, spread = mosaic(saved(tmp_path, places, [constant(1000), constant(5000)]), shape=(64, 96), overlap=32)
    share = 0.5 - 0.5 * np.cos(np.pi * (np.arange(32) + 0.5) / 32)
    profile = np.concatenate([np.full(32, 1000.0), 1000 + 4000 * share, np.full(32, 5000.0)])
    expected = profile + np.arange(4)[:, None, None]
    np.testing.assert_allclose(mean, np.broadcast_to(expected, (4, 64, 96)), rtol=1e-5)
    assert mean.dtype == np.float32
    assert spread is None


def test_tiles_that_disagree_leave_no_seam(tmp_path):
    """Each tile has another brightness, and gets darker towards its own right edge."""
    shape, rng = (160, 224), np.random.default_rng(1)
    places = tiles(shape, size=64, overlap=32)
    own = [rng.integers(2000, 20000) + np.linspace(1000, 0, 64) + np.zeros((1, 4, 64, 64)) for _ in places]
    mean, _ = mosaic(saved(tmp_path, places, [image.astype(np.uint16) for image in own]), shape=shape, overlap=32)
    edges = [
        sorted({start for tile in places for start in (tile.slices[axis].start, tile.slices[axis].stop)})
        for axis in (0, 1)
    ]
    everywhere = np.ones(shape, bool)
    assert seam_index(mean, everywhere, *edges) < 1
    most = 18000 * np.pi / 2 / 32  # the cosine at its steepest, between the two that are furthest apart
    assert max(np.abs(np.diff(mean, axis=axis)).max() for axis in (1, 2)) < 1.1 * most


def test_every_pixel_is_a_mean_of_the_tiles_over_it(tmp_path):
    """Of three tiles, the last shifted inwards so that all of them overlap: weights by hand, and they sum to 1."""
    shape = (64, 80)
    places = tiles(shape, size=64, overlap=60)
    assert [tile.col for tile in places] == [0, 4, 8, 12, 16]
    parts = []
    for lit in range(len(places)):
        folder = tmp_path / str(lit)
        folder.mkdir()
        images = [np.full((1, 4, 64, 64), 10000 if number == lit else 0, np.uint16) for number in range(len(places))]
        parts.append(mosaic(saved(folder, places, images), shape=shape, overlap=60)[0])
    np.testing.assert_allclose(sum(parts), 10000, rtol=1e-5)
    edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(60) + 0.5) / 60)
    ramp = np.minimum(np.append(edge, [1] * 4), np.append(edge, [1] * 4)[::-1])
    weights = np.zeros((len(places), 80))
    for number, tile in enumerate(places):
        weights[number, tile.col : tile.col + 64] = ramp
    for part, weight in zip(parts, weights / weights.sum(0), strict=True):
        np.testing.assert_allclose(part, np.broadcast_to(10000 * weight, part.shape), rtol=1e-4)


def test_tiles_cut_from_one_image_are_that_image(tmp_path):
    image = np.random.default_rng(0).integers(1, 60000, (4, 100, 75)).astype(np.uint16)
    places = tiles((100, 75), size=64, overlap=32)
    parts = saved(tmp_path, places, [image[(None, slice(None), *tile.slices)] for tile in places])
    mean, spread = mosaic(parts, shape=(100, 75), overlap=32)
    np.testing.assert_allclose(mean, image, rtol=1e-5)
    assert spread is None


def test_what_hangs_over_a_small_scene_is_cut_off_at_the_far_edges(tmp_path):
    image = np.random.default_rng(0).integers(1, 60000, (1, 4, 32, 32)).astype(np.uint16)
    mean, _ = mosaic(saved(tmp_path, [Tile(0, 0, 32, 32)], image[None]), shape=(20, 17), overlap=8)
    np.testing.assert_allclose(mean, image[0, :, :20, :17], rtol=1e-5)


def test_the_corners_of_a_scene_are_as_bright_as_the_rest_and_elsewhere_it_is_empty(tmp_path):
    parts = saved(tmp_path, [Tile(0, 0, 64, 64)], [np.full((1, 4, 64, 64), 5000, np.uint16)])
    mean, _ = mosaic(parts, shape=(64, 70), overlap=32)
    np.testing.assert_allclose(mean[..., :64], 5000, rtol=1e-5)
    assert (mean[..., 64:] == 0).all()


def test_mean_and_deviation_are_those_of_the_members(tmp_path):
    places = tiles((64, 96), size=64, overlap=32)
    members = [constant(1000, 3000), constant(6000, 6600)]
    mean, spread = mosaic(saved(tmp_path, places, members), shape=(64, 96), overlap=32, spread=True)
    np.testing.assert_allclose(mean[:, 5, 7], [2000, 2001, 2002, 2003], rtol=1e-6)
    np.testing.assert_allclose(mean[:, 5, 90], [6300, 6301, 6302, 6303], rtol=1e-6)
    share = 0.5 - 0.5 * np.cos(np.pi * (np.arange(32) + 0.5) / 32)
    profile = np.concatenate([np.full(32, 1000.0), 1000 - 700 * share, np.full(32, 300.0)])
    np.testing.assert_allclose(spread, np.broadcast_to(profile, (4, 64, 96)), rtol=1e-5)


@pytest.mark.parametrize("height", [1, 37, 100])
def test_a_stripe_is_as_of_the_whole(tmp_path, height):
    shape, rng = (100, 75), np.random.default_rng(2)
    places = tiles(shape, size=64, overlap=32)
    parts = saved(tmp_path, places, rng.integers(0, 60000, (len(places), 3, 4, 64, 64)).astype(np.uint16))
    whole = mosaic(parts, shape=shape, overlap=32, spread=True)
    stripes = [
        mosaic(parts, shape=shape, overlap=32, spread=True, rows=slice(top, top + height))
        for top in range(0, 100, height)
    ]
    for number, image in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([stripe[number] for stripe in stripes], 1), image)


# --- compose -----------------------------------------------------------------------------------------------------
def compose(cloudy, restored, *, mask, core):
    """A whole scene, stripe by stripe."""
    feather = Feather(mask, core)
    parts = [
        feather.compose(top, cloudy[:, top : top + blend.ROWS], restored[:, top : top + blend.ROWS])
        for top in feather.tops
    ]
    return np.concatenate([image for image, _ in parts], 1), np.concatenate([flags for _, flags in parts])


ROW = {"mask": [0, 0, 1, 1, 1, 1, 1, 0, 0], "core": [0, 0, 0, 0, 1, 0, 0, 0, 0]}


def line(cloudy: int, ground: float, *, mask=ROW["mask"], core=ROW["core"]) -> tuple[list, list]:
    """One row of pixels, the same in all bands: DN of the first band, and flags."""
    shape = (4, 1, len(mask))
    before = np.full(shape, cloudy, np.uint16)
    out, flags = compose(
        before, np.full(shape, ground, np.float32), mask=np.array([mask], np.uint8), core=np.array([core], np.uint8)
    )
    assert out.dtype == np.uint16
    assert flags.dtype == np.uint8
    assert (before == cloudy).all()  # the caller's own
    assert (out == out[:1]).all()
    return out[0, 0].tolist(), flags[0].tolist()


def test_the_restored_ground_fades_in_from_the_rim_to_the_core():
    assert line(1000, 4000) == ([1000, 1000, 2000, 3000, 4000, 3000, 2000, 1000, 1000], [0, 0, 2, 2, 1, 2, 2, 0, 0])
    assert line(1000, 1001) == ([1000, 1000, 1000, 1001, 1001, 1001, 1000, 1000, 1000], [0, 0, 2, 2, 1, 2, 2, 0, 0])


def test_what_is_written_is_a_valid_digital_number():
    """Clamped before it is blended: what the ground cannot be is not mixed in."""
    assert line(1000, -5000)[0] == [1000, 1000, 667, 334, 1, 334, 667, 1000, 1000]
    assert line(5535, 80000)[0] == [5535, 5535, 25535, 45535, 65535, 45535, 25535, 5535, 5535]
    assert line(1, 0)[0] == [1] * 9
    assert line(0, 1)[0] == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert line(65535, 65535.4)[0] == [65535] * 9


@pytest.mark.parametrize("hidden", [CLOUD, SHADOW, CIRRUS])
def test_every_class_that_hides_the_ground_is_reconstructed(hidden):
    assert line(1000, 4000, mask=[0, hidden, 0], core=[0, hidden, 0]) == ([1000, 4000, 1000], [0, 1, 0])


@pytest.mark.parametrize(("seen", "flag"), [(CLEAR, OBSERVED), (UNKNOWN, OBSERVED), (NO_DATA, NO_DATA)])
def test_no_other_class_is(seen, flag):
    found = line(1000, 4000, mask=[CLOUD, seen, seen], core=[CLOUD, seen, CLOUD])
    assert found == ([4000, 1000, 1000], [RECONSTRUCTED, flag, flag])


def test_where_dilation_alone_reaches_nothing_is_blended_in():
    assert line(1000, 4000, core=[0] * 9) == ([1000] * 9, [0, 0, 2, 2, 2, 2, 2, 0, 0])
    assert line(1000, 4000, mask=[0] * 9, core=[0] * 9) == ([1000] * 9, [0] * 9)


def test_a_scene_all_under_cloud_is_all_reconstructed():
    assert line(1000, 4000, mask=[1] * 9, core=[1] * 9) == ([4000] * 9, [1] * 9)


def test_distances_are_those_of_the_plane():
    """Against every distance measured one by one."""
    rng = np.random.default_rng(4)
    mask = np.zeros((12, 14), np.uint8)
    mask[2:10, 3:12] = CLOUD
    mask[5, 5] = CLEAR
    core = np.where(rng.random(mask.shape) < 0.1, mask, 0).astype(np.uint8)
    assert core.any()
    out, flags = compose(
        np.full((4, 12, 14), 1000, np.uint16), np.full((4, 12, 14), 11000, np.float32), mask=mask, core=core
    )
    outside, solid = np.argwhere(mask == 0), np.argwhere(core == CLOUD)
    for row, col in np.argwhere(mask == CLOUD):
        depth, outward = (np.hypot(*(others - (row, col)).T).min() for others in (outside, solid))
        assert abs(out[0, row, col] - (1000 + 10000 * depth / (depth + outward))) <= 0.51
        assert flags[row, col] == (RECONSTRUCTED if outward == 0 else BLENDED_EDGE)


def reference_compose(cloudy, restored, mask, core):
    """The whole scene at once, by scipy's transforms of all of it."""
    inside = np.isin(mask, HIDDEN)
    solid = np.isin(core, HIDDEN) & inside
    depth = distance_transform_edt(inside)
    outward = distance_transform_edt(~solid) if solid.any() else np.full(mask.shape, np.inf)
    alpha = np.where(solid, 1, depth / (depth + outward)).astype(np.float32)
    blended = cloudy + alpha * (restored.clip(1, 65535) - cloudy)
    out = np.where(inside, np.maximum(np.rint(blended), 1), cloudy).astype(np.uint16)
    flags = np.where(inside, np.where(alpha >= 1, RECONSTRUCTED, BLENDED_EDGE), OBSERVED).astype(np.uint8)
    return out, np.where(mask == NO_DATA, np.uint8(NO_DATA), flags)


@examples(40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 80),
    st.integers(1, 90),
    st.sampled_from([1, 3, 12, 60]),
    st.sampled_from([0.001, 0.02, 0.3]),
    st.sampled_from([1, 7, 32, 128]),
)
def test_by_stripes_it_is_what_distances_over_the_whole_scene_give(seed, height, width, radius, share, rows):
    """Whatever the stripes' height, however far the mask reaches beyond its core, and across its closed holes."""
    rng = np.random.default_rng(seed)
    core = np.where(rng.random((height, width)) < share, CLOUD, CLEAR).astype(np.uint8)
    mask = core.copy()
    mask[masks.dilate(core == CLOUD, radius)] = CLOUD
    mask[rng.random(mask.shape) < 0.01] = NO_DATA
    mask[rng.integers(height), rng.integers(width)] = CLEAR  # scipy knows no distance to nothing
    cloudy = rng.integers(0, 65536, (4, height, width)).astype(np.uint16)
    restored = rng.uniform(-500, 70000, cloudy.shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blend, "ROWS", rows)
        patch.setattr(blend, "_COLUMNS", 32)
        image, flags = compose(cloudy, restored, mask=mask, core=core)
    expected = reference_compose(cloudy, restored, mask, core)
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(flags, expected[1])


def test_where_all_is_hidden_the_core_alone_says_how_much():
    assert line(1000, 4000, mask=[1] * 5, core=[0, 0, 1, 0, 0]) == ([4000] * 5, [1] * 5)
    assert line(1000, 4000, mask=[1] * 5, core=[0] * 5) == ([1000] * 5, [2] * 5)


@examples(30)
@given(st.integers(0, 10**6), st.floats(0, 6))
def test_observed_clear_pixels_come_back_bit_for_bit(seed, grow):
    rng = np.random.default_rng(seed)
    scl = rng.choice([0, 3, 4, 8, 10, 11], (10, 12), p=[0.02, 0.05, 0.6, 0.05, 0.05, 0.23]).astype(np.uint8)
    core = masks.upsampled(masks.classes(scl), 2, (20, 24))
    radii = masks.Settings(cloud_m=10 * grow, shadow_m=5 * grow, cirrus_m=grow)
    mask = masks.grow(core, radii, pixel_m=10)
    cloudy = rng.integers(0, 65536, (4, 20, 24)).astype(np.uint16)
    out, flags = compose(cloudy, rng.uniform(-500, 70000, (4, 20, 24)).astype("f4"), mask=mask, core=core)
    untouched = ~np.isin(mask, HIDDEN)
    np.testing.assert_array_equal(out[:, untouched], cloudy[:, untouched])
    assert set(np.unique(flags[untouched])) <= {OBSERVED, NO_DATA}
    assert (out[:, ~untouched] >= 1).all()
    np.testing.assert_array_equal(flags == RECONSTRUCTED, np.isin(core, HIDDEN))
    np.testing.assert_array_equal(flags == NO_DATA, mask == NO_DATA)
