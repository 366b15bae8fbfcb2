"""Arrays of one's own: what is taken, what is refused, and that it comes back in the same form."""

import numpy as np
import pytest
import xarray
from own_images import NAMES, clouded, ground

from cloudjob.errors import ConfigError
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.restoration import own_arrays

GROUND = ground(24, 30)
DN = np.rint(GROUND * 10_000).astype(np.int32) + 1000
UNITS = {"scale": 1e-4, "offset": 0.0}


def labelled(array=GROUND, names=NAMES, **more):
    coords = {"y": np.arange(array.shape[1])[::-1] * 10.0, "x": np.arange(array.shape[2]) * 10.0, **more}
    return xarray.DataArray(array, dims=("band", "y", "x"), coords=coords | ({"band": list(names)} if names else {}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reflectance_and_whole_numbers(dtype):
    image = GROUND.astype(dtype)
    image[2, 0, 0] = np.nan
    given = own_arrays.Given.of(image, **UNITS)
    assert (given.shape, given.dn.dtype) == ((24, 30), np.uint16)
    np.testing.assert_array_equal(given.dn[:, 1:], DN[:, 1:])
    assert not given.dn[:, 0, 0].any()
    whole = own_arrays.Given.of((DN * (np.arange(30) > 3)).astype(np.uint16), scale=1e-4, offset=-0.1)
    np.testing.assert_array_equal(whole.dn[:, :, 4:], DN[:, :, 4:])
    assert not whole.dn[:, :, :4].any()


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (GROUND[:3], r"shape \(3, 24, 30\); expected \(4, rows, columns\)"),
        (GROUND[0], r"shape \(24, 30\)"),
        (GROUND * 10_000, "is no reflectance.*divide them by 10000"),
        (GROUND > 0.1, "an image of bool"),
        (labelled(np.concatenate([GROUND, GROUND]), names=None), "does not tell which of its bands are which"),
    ],
)
def test_what_is_no_image(image, why):
    with pytest.raises(ConfigError, match=why):
        own_arrays.Given.of(image, **UNITS)


def test_xarray_by_the_names_of_its_bands():
    twice = np.concatenate([GROUND[::-1], GROUND[:1] * 0])
    given = own_arrays.Given.of(labelled(twice, names=("nir", "blue", "green", "red", "B11")), **UNITS)
    np.testing.assert_array_equal(given.dn, DN)
    last = labelled().transpose("y", "x", "band")
    np.testing.assert_array_equal(own_arrays.Given.of(last, **UNITS).dn, DN)
    data = xarray.Dataset({name: (("time", "y", "x"), band[None]) for name, band in zip(NAMES, GROUND, strict=True)})
    data["spatial_ref"] = 0
    np.testing.assert_array_equal(own_arrays.Given.of(data, **UNITS).dn, DN)


def test_it_comes_back_with_its_coordinates():
    given = own_arrays.Given.of(labelled(), **UNITS)
    image, flags = given.like(GROUND + 1), given.like(np.zeros((24, 30), np.uint8))
    assert (image.dims, flags.dims) == (("band", "y", "x"), ("y", "x"))
    assert image.band.values.tolist() == list(NAMES)
    assert flags.y.values[0] == 230
    assert own_arrays.Given.of(GROUND, **UNITS).like(GROUND) is GROUND


def test_what_was_observed_comes_back_as_it_was_given():
    image = GROUND + 1e-6
    image[:, 0, 0] = np.nan
    given = own_arrays.Given.of(image, **UNITS)
    flags = np.zeros((24, 30), np.uint8)
    flags[5], flags[6], flags[0, 0] = 1, 2, 255
    back = given.put_back(np.full((4, 24, 30), 3000, np.uint16), flags)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[:, flags % 255 == 0], image[:, flags % 255 == 0])
    np.testing.assert_allclose(back[:, 5:7], 0.2, atol=1e-7)


@pytest.mark.parametrize(
    ("mask", "values", "classes"),
    [
        ([True, False], None, [CLOUD, CLEAR]),
        ([1, 2], None, [CLOUD, SHADOW]),
        ([2, 3], "omnicloudmask", [3, SHADOW]),
        ([7, 9], {"cloud": [7], "clear": [9]}, [CLOUD, CLEAR]),
        ([255, 0], None, [NO_DATA, CLEAR]),
    ],
)
def test_masks(mask, values, classes):
    assert own_arrays.classes(np.array([mask]), (1, 2), values).tolist() == [classes]


@pytest.mark.parametrize(
    ("mask", "values", "why"),
    [
        ([[1, 2, 3]], None, r"a mask of shape \(1, 3\), the image has \(1, 2\)"),
        ([[1, 9]], None, "what its value 9 means.*say it in mask_values"),
        ([[1, 0]], "nobody", "choose one of cloudsen12, omnicloudmask"),
    ],
)
def test_masks_that_mean_nothing(mask, values, why):
    with pytest.raises(ConfigError, match=why):
        own_arrays.classes(np.array(mask), (1, 2), values)


def test_clear_dates():
    given = own_arrays.Given.of(labelled(), **UNITS)
    assert own_arrays.dates((), given, **UNITS) == []
    for clear in (labelled(), GROUND, [GROUND], (labelled(),)):
        (dn,) = own_arrays.dates(clear, given, **UNITS)
        np.testing.assert_array_equal(dn, DN)
    with pytest.raises(ConfigError, match=r"a clear date of \(24, 29\) pixels, the image has \(24, 30\)"):
        own_arrays.dates(GROUND[:, :, 1:], given, **UNITS)
    with pytest.raises(ConfigError, match="on other pixels than the image, by its x"):
        own_arrays.dates(labelled(x=np.arange(30) * 10.0 + 10), given, **UNITS)


def test_a_clear_date_is_brought_to_the_light_of_the_image():
    image, where = clouded(ground(60, 70))
    given = own_arrays.Given.of(image, **UNITS)
    first, second = (np.round(0.8 * ground(60, 70) + 0.02, 4) for _ in range(2))
    first[:, 15:20] = np.nan
    core = np.where(where, CLOUD, CLEAR).astype(np.uint8)
    dates = own_arrays.dates([first, second], given, **UNITS)
    options = {"grown": True, "pixel_m": 10.0, "sun_elevation": 40.0, "days": (5.0, -3.0)}
    found = own_arrays.conditions(given.dn, core, dates, **options)
    assert (found.sun_elevation, found.reference_days) == (40.0, (5.0, -3.0))
    truth = np.rint(ground(60, 70) * 10_000) + 1000
    hole = np.zeros((60, 70), bool)
    hole[15:20] = True
    for reference, empty in zip(found.references, (hole, hole & False), strict=True):
        assert np.abs(reference - truth)[:, ~empty].max() <= 2
        assert not reference[:, empty].any()


def test_at_most_three_clear_dates_are_taken_and_that_is_said():
    given = own_arrays.Given.of(GROUND, **UNITS)
    four = [GROUND + 0.01 * number for number in range(4)]
    with pytest.warns(UserWarning, match="4 clear dates; the first 3 are taken"):
        taken = own_arrays.dates(four, given, **UNITS)
    for dn, number in zip(taken, range(3), strict=True):
        np.testing.assert_array_equal(dn, own_arrays.Given.of(four[number], **UNITS).dn)


@pytest.mark.parametrize(
    ("days", "count", "each"),
    [
        (None, 0, ()),
        (4.0, 0, ()),
        (4.0, 1, (4.0,)),
        (4.0, 2, (4.0, None)),
        ([4.0, -2], 2, (4.0, -2)),
        ([None, 7.0, 1.0, 2.0], 3, (None, 7.0, 1.0)),
    ],
)
def test_days_are_of_each_date_or_of_the_first_alone(days, count, each):
    assert own_arrays.days(days, count) == each


def test_a_mask_grows_by_metres_of_the_pixels():
    core = np.zeros((24, 30), np.uint8)
    core[12, 15] = CLOUD
    options = {"sun_elevation": None, "days": ()}
    dn = own_arrays.Given.of(GROUND, **UNITS).dn
    sizes = [
        np.count_nonzero(own_arrays.conditions(dn, core, [], grown=grown, pixel_m=metres, **options).mask)
        for grown, metres in ((True, 10), (False, 100), (False, 50), (False, 10))
    ]
    assert sizes == [1, 5, 13, 317]
