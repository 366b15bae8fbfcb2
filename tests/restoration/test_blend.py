"""Blending: clear pixels bit for bit, no seam, nothing outside the dilated mask."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudjob.restoration import blend, tiles
from cloudjob.sentinel2 import masks


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 6))
def test_observed_clear_pixels_come_back_bit_for_bit(seed, grow):
    rng = np.random.default_rng(seed)
    scl = rng.choice([0, 3, 4, 8, 10, 11], (10, 12), p=[0.02, 0.05, 0.6, 0.05, 0.05, 0.23]).astype(np.uint8)
    core = masks.upsampled(masks.classes(scl), 2, (20, 24))
    radii = masks.Settings(cloud_m=10 * grow, shadow_m=5 * grow, cirrus_m=grow)
    mask = masks.grow(core, radii, pixel_m=10)
    cloudy = rng.integers(0, 65536, (4, 20, 24)).astype(np.uint16)
    out, flags = blend.compose(cloudy, rng.uniform(-500, 70000, (4, 20, 24)).astype("f4"), mask=mask, core=core)
    untouched = ~np.isin(mask, (1, 2, 3))
    np.testing.assert_array_equal(out[:, untouched], cloudy[:, untouched])
    assert set(np.unique(flags[untouched])) <= {0, 255}
    assert (out[:, ~untouched] >= 1).all()
    np.testing.assert_array_equal(flags == 1, np.isin(core, (1, 2, 3)))
    np.testing.assert_array_equal(flags == 255, mask == 255)


def test_mosaic_of_tiles_cut_from_one_image_is_that_image(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(1, 60000, (4, 100, 75)).astype(np.uint16)
    parts = []
    for number, tile in enumerate(tiles.tiles((100, 75), size=64, overlap=32)):
        path = tmp_path / f"{number}.npy"
        np.save(path, image[(None, slice(None), *tile.slices)])
        parts.append((tile, path))
    mean, spread = blend.mosaic(parts, shape=(100, 75), overlap=32)
    np.testing.assert_allclose(mean, image, rtol=1e-5)
    assert spread is None


def test_mosaic_of_a_scene_smaller_than_a_tile_and_spread_over_members(tmp_path):
    members = np.stack([np.full((4, 32, 32), value, np.uint16) for value in (1000, 3000)])
    np.save(tmp_path / "a.npy", members)
    mean, spread = blend.mosaic([(tiles.Tile(0, 0, 32, 32), tmp_path / "a.npy")], shape=(20, 17), overlap=8, spread=True)
    np.testing.assert_allclose(mean, 2000)
    np.testing.assert_allclose(spread, 1000)
    assert mean.shape == (4, 20, 17)


def test_the_corners_of_a_scene_are_as_bright_as_the_rest(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 4, 256, 256), 5000, np.uint16))
    mean, _ = blend.mosaic([(tiles.Tile(0, 0, 256, 256), tmp_path / "a.npy")], shape=(256, 256), overlap=128)
    np.testing.assert_allclose(mean, 5000, rtol=1e-5)
