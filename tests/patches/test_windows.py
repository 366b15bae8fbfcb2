"""Windows against brute force: selection, correlation, an even histogram, no ground of another split."""

import numpy as np
import pytest
from affine import Affine
from examples import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from cloudjob.benches import notebook
from cloudjob.patches import windows
from cloudjob.patches.windows import Windows
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

SEEDS = st.integers(0, 10**6)


def blobs(rng, shape: tuple[int, int], values: list[int], p: list[float]) -> np.ndarray:
    """(h, w) uint8 of patches of 4 x 4 pixels and some single ones: windows are neither all alike nor noise."""
    coarse = rng.choice(values, (shape[0] // 4 + 1, shape[1] // 4 + 1), p=p).repeat(4, 0).repeat(4, 1)
    single = rng.random(shape) < 0.03
    return np.where(single, rng.choice(values, shape), coarse[: shape[0], : shape[1]]).astype(np.uint8)


def at_10m(mask: np.ndarray, factor: int, shape: tuple[int, int]) -> np.ndarray:
    return mask.repeat(factor, 0).repeat(factor, 1)[: shape[0], : shape[1]]


def some_windows(rng, count: int, shape: tuple[int, int], window: int) -> Windows:
    row, col = (rng.integers(0, side - window + 1, count).astype(np.int32) for side in shape)
    return Windows(row, col, rng.random(count).astype(np.float32), window)


def places(found: Windows) -> list[tuple[int, int]]:
    return list(zip(found.row.tolist(), found.col.tolist(), strict=True))


@example(0, (70, 61), 2, 15, 4, (0.0, 1.0), 1.0, 1.0)  # the grid does not part the window, or the stride
@example(0, (70, 61), 2, 12, 3, (0.0, 1.0), 1.0, 1.0)
@examples(150)
@given(
    SEEDS,
    st.tuples(st.integers(1, 48), st.integers(1, 48)),
    st.sampled_from([1, 2, 6]),
    st.sampled_from([8, 12, 15, 24]),
    st.integers(1, 30),
    st.sampled_from([(0.05, 0.3), (0.0, 1.0), (0.25, 0.25), (0.5, 0.9)]),
    st.sampled_from([0.0, 0.02, 0.25, 1.0]),
    st.sampled_from([0.0, 0.02, 0.25, 1.0]),
)
def test_selection_equals_brute_force(seed, shape, factor, window, stride, cloud, target_max_cloud, max_no_data):
    rng = np.random.default_rng(seed)
    native = tuple(-(-side // factor) for side in shape)
    core = blobs(rng, native, [0, 1, 2, 3, 4, 255], [0.6, 0.2, 0.05, 0.1, 0.03, 0.02])
    target = blobs(rng, native, [0, 1, 2, 3, 4, 255], [0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
    rule = {"cloud": cloud, "target_max_cloud": target_max_cloud, "max_no_data": max_no_data}
    found = windows.select(core, target, factor=factor, shape=shape, window=window, stride=stride, **rule)

    a, b = (at_10m(mask, factor, shape) for mask in (core, target))
    expected = []
    for row in range(0, shape[0] - window + 1, stride):
        for col in range(0, shape[1] - window + 1, stride):
            here, there = (mask[row : row + window, col : col + window] for mask in (a, b))
            share = np.isin(here, (1, 3)).mean()
            if (
                cloud[0] <= share <= cloud[1]
                and np.isin(there, (1, 2, 3, 4)).mean() <= target_max_cloud
                and ((here == 255) | (there == 255)).mean() <= max_no_data
            ):
                expected.append((row, col, np.float32(share)))
    assert [*zip(*zip(*places(found), strict=True), found.cloud_fraction, strict=True)] == expected
    assert (found.row.dtype, found.col.dtype, found.cloud_fraction.dtype) == ("i4", "i4", "f4")
    assert found.window == window


@examples(60)
@given(SEEDS, st.sampled_from([(20, 4), (20, 5), (40, 20), (20, 6)]), st.integers(60, 90), st.integers(60, 90))
def test_the_preset_selects_what_the_notebook_did(seed, sizes, height, width):
    """Windows of 400 and 1600 pixels: shares of exactly 5 and 30 %, which are no binary fractions, come up often."""
    window, stride = sizes
    scl = blobs(
        np.random.default_rng(seed), (-(-height // 2), -(-width // 2)), [4, 8, 9, 10, 3, 0], [0.75] + [0.05] * 5
    )
    rule = windows.NOTEBOOK_2025 | {"window": window, "stride": stride}
    found = windows.select(scl, scl, factor=2, shape=(height, width), **rule)
    assert places(found) == notebook.select(at_10m(scl, 2, (height, width)), window=window, stride=stride)


def test_the_preset_at_its_own_window_and_stride():
    rng = np.random.default_rng(5)
    scl = blobs(rng, (15, 19), [4, 8, 9, 10, 11, 5], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]).repeat(37, 0).repeat(37, 1)
    shape = (1109, 1405)
    found = windows.select(scl, scl, factor=2, shape=shape, window=256, **windows.NOTEBOOK_2025)
    assert places(found) == notebook.select(at_10m(scl, 2, shape))
    assert 20 < len(found) < 14 * 18  # some of all


def test_windows_of_more_rows_than_a_byte_counts():
    core = np.ones((700, 650), np.uint8)
    rule = {"cloud": (1.0, 1.0), "target_max_cloud": 0.0, "max_no_data": 0.0}
    found = windows.select(core, core * 0, factor=1, shape=core.shape, window=600, stride=50, **rule)
    assert places(found) == [(row, col) for row in (0, 50, 100) for col in (0, 50)]


@examples(60)
@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(0, 30), st.floats(0, 1))
def test_correlation_equals_that_of_the_cut_windows(seed, step, count, share):
    rng = np.random.default_rng(seed)
    shape, size = (97, 121), 32
    reduced = tuple(-(-side // step) for side in shape)
    clear = rng.integers(1, 65536, (3, *reduced)).astype(np.uint16)
    cloudy = (clear // 2 + rng.integers(1, 20000, clear.shape)).astype(np.uint16)
    cloudy[1] = 1207  # a band that does not vary
    clear[2, :, : reduced[1] // 2] = 65535  # one that does not vary everywhere
    usable = rng.random(reduced) < share
    found = some_windows(rng, count, shape, size)
    values = windows.correlation(cloudy, clear, usable, found, step=step)
    assert values.dtype == np.float32
    for row, col, value in zip(found.row, found.col, values, strict=True):
        here = tuple(slice(int(k / step + 0.5), int((k + size) / step + 0.5)) for k in (row, col))
        chosen = [image[:, *here][:, usable[here]].astype(float) for image in (cloudy, clear)]
        bands = [(a, b) for a, b in zip(*chosen, strict=True) if a.size >= 16 and a.std() and b.std()]
        expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in bands]) if bands else np.nan
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_correlation_of_snow_without_features_is_that_of_noise():
    rng = np.random.default_rng(1)
    cloudy, clear = 9800 + rng.integers(-3, 4, (2, 4, 64, 64))
    found = some_windows(rng, 20, (512, 512), 256)
    everywhere = np.ones((64, 64), bool)
    assert np.abs(windows.correlation(cloudy, clear, everywhere, found, step=8)).max() < 0.1
    flat = np.full_like(clear, 9800)
    assert np.isnan(windows.correlation(cloudy, flat, everywhere, found, step=8)).all()
    assert np.isnan(windows.correlation(cloudy, clear, ~everywhere, found, step=8)).all()


@examples(100)
@given(SEEDS, st.integers(0, 200), st.integers(0, 8), st.none() | st.integers(1, 220))
def test_balance_fills_the_bins_evenly_and_keeps_the_order(seed, count, bins, limit):
    rng = np.random.default_rng(seed)
    all_of_them = Windows(np.arange(count), np.arange(count), (rng.random(count) ** 3).astype(np.float32), 8)
    found = windows.balance(all_of_them, bins=bins, cloud=(0.0, 1.0), limit=limit, seed=seed)
    assert (np.diff(found.row) > 0).all()
    np.testing.assert_array_equal(found.cloud_fraction, all_of_them.cloud_fraction[found.row])
    np.testing.assert_array_equal(
        found.row, windows.balance(all_of_them, bins=bins, cloud=(0.0, 1.0), limit=limit, seed=seed).row
    )

    before, after = (np.histogram(w.cloud_fraction, max(bins, 1), (0, 1))[0] for w in (all_of_them, found))
    if limit is not None:
        assert len(found) == min(limit, count)
        short = after < before  # a bin that has more to give has as many as any other, but for one
        assert not short.any() or after[short].min() >= after.max() - 1
    elif count:
        np.testing.assert_array_equal(after, np.minimum(before, int(np.median(before[before > 0]))))


def test_a_limit_draws_from_everywhere_and_the_seed_decides_what():
    whole = Windows(np.arange(1000), np.zeros(1000), np.full(1000, 0.2, np.float32), 8)
    first, again, other = (
        windows.balance(whole, bins=0, cloud=(0.05, 0.3), limit=100, seed=seed).row.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
    assert min(first) < 100
    assert max(first) >= 900


@pytest.mark.parametrize(("bins", "kept"), [(0, [8, 2]), (1, [8, 2]), (2, [5, 2])])
def test_without_a_limit_a_single_bin_keeps_all_and_two_bins_their_median_count(bins, kept):
    whole = Windows(np.arange(10), np.arange(10), np.float32([0.1] * 8 + [0.9] * 2), 8)
    found = windows.balance(whole, bins=bins, cloud=(0.0, 1.0), limit=None, seed=0)
    assert [(found.row < 8).sum(), (found.row >= 8).sum()] == kept


def test_a_range_of_cloud_that_is_a_point_can_be_balanced():
    whole = Windows(np.arange(9), np.arange(9), np.full(9, 0.25, np.float32), 8)
    assert len(windows.balance(whole, bins=4, cloud=(0.25, 0.25), limit=5, seed=0)) == 5


@examples(60)
@given(SEEDS, st.integers(0, 40))
def test_no_window_that_is_left_touches_ground_of_another_split(seed, count):
    rng = np.random.default_rng(seed)
    transform = Affine(10, 0, 500000, 0, -10, 7800000)
    found = some_windows(rng, count, (400, 500), 64)
    corners = rng.uniform((500000, 7796000), (505000, 7800000), (2, 3, 2))
    excluded = [Polygon(triangle) for triangle in corners]
    assume(all(polygon.is_valid for polygon in excluded))
    kept = windows.off_ground(found, transform=transform, excluded=excluded)

    def distance(row, col):
        left, top = 500000 + 10 * col, 7800000 - 10 * row
        square = box(left, top - 640, left + 640, top)
        return min(square.distance(polygon) for polygon in excluded)

    left_out = set(places(found)) - set(places(kept))
    assert all(distance(*place) > 95 for place in places(kept))  # the margin's corners are drawn with 16 segments
    assert all(distance(*place) <= windows.GROUND_MARGIN_M for place in left_out)


def test_without_other_splits_all_windows_stay():
    found = some_windows(np.random.default_rng(0), 5, (400, 500), 64)
    assert windows.off_ground(found, transform=Affine(10, 0, 5e5, 0, -10, 78e5), excluded=[]) is found


@pytest.mark.parametrize("which", [np.array([0, 2]), np.array([True, False, True])])
def test_windows_can_be_taken_by_position_or_by_flag(which):
    found = Windows(np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([0.1, 0.2, 0.3]), 8).take(which)
    assert (len(found), found.window) == (2, 8)
    assert places(found) == [(1, 4), (3, 6)]
    assert found.cloud_fraction.tolist() == [0.1, 0.3]


# --- limits: each itself is allowed, one pixel beyond is not -------------------------------------------------
WINDOW = 20  # 400 pixels, of which 5 % and 30 % are whole numbers that binary fractions do not hold


def one_window(core: dict[int, int], target: dict[int, int], **limits) -> int:
    """Whether the one window of a scene is selected; `core` and `target` are numbers of pixels by class."""
    images = []
    for counts in (core, target):
        classes = [value for value, count in counts.items() for _ in range(count)]
        images.append(np.array(classes + [CLEAR] * (WINDOW**2 - len(classes)), np.uint8).reshape(WINDOW, WINDOW))
    rule = {"cloud": (0.05, 0.30), "target_max_cloud": 0.01, "max_no_data": 0.0} | limits
    return len(windows.select(*images, factor=1, shape=(WINDOW, WINDOW), window=WINDOW, stride=WINDOW, **rule))


@pytest.mark.parametrize(("pixels", "selected"), [(19, 0), (20, 1), (120, 1), (121, 0)])
def test_the_range_of_cloud_holds_its_ends(pixels, selected):
    assert one_window({CLOUD: pixels}, {}) == selected
    assert one_window({CLOUD: pixels - 7, CIRRUS: 7}, {}) == selected
    assert one_window({CLOUD: pixels, SHADOW: 50, UNKNOWN: 50}, {}) == selected  # these are no cloud


@pytest.mark.parametrize("value", [CLOUD, CIRRUS, SHADOW, UNKNOWN])
@pytest.mark.parametrize(("pixels", "selected"), [(4, 1), (5, 0)])
def test_the_clear_date_may_be_hidden_or_unknown_up_to_its_limit(value, pixels, selected):
    assert one_window({CLOUD: 40}, {value: pixels}) == selected
    assert one_window({CLOUD: 40}, {NO_DATA: pixels}, max_no_data=0.5) == 1  # no data has a limit of its own


@pytest.mark.parametrize(("pixels", "selected"), [(8, 1), (9, 0)])
def test_either_date_may_lack_data_up_to_its_limit(pixels, selected):
    assert one_window({CLOUD: 40, NO_DATA: pixels}, {}, max_no_data=0.02) == selected
    assert one_window({CLOUD: 40}, {NO_DATA: pixels}, max_no_data=0.02) == selected
    assert one_window({NO_DATA: 4, CLOUD: 40}, {NO_DATA: pixels}, max_no_data=0.02) == selected  # 4 lack both


@pytest.mark.parametrize(("away", "kept"), [(0, 0), (90, 0), (100, 0), (101, 1), (500, 1)])
def test_windows_keep_more_than_the_margin_from_ground_of_another_split(away, kept):
    transform = Affine(10, 0, 500000, 0, -10, 7800000)
    one = Windows(np.array([10]), np.array([20]), np.array([0.2]), 64)
    left, right, top, bottom = 500200, 500840, 7799900, 7799260
    for polygon in (
        box(right + away, bottom, right + 9000, top),
        box(left - 9000, bottom, left - away, top),
        box(left, top + away, right, top + 9000),
        box(left, bottom - 9000, right, bottom - away),
    ):
        assert len(windows.off_ground(one, transform=transform, excluded=[box(0, 0, 1, 1), polygon])) == kept
