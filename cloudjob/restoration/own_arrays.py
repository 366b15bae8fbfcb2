"""One's own image, mask and clear dates as arrays of numpy or xarray; what is restored is given back in that form."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cloudjob.errors import ConfigError
from cloudjob.pixels import BANDS, CLEAR, CLOUD, EMPTY_DN, NO_DATA, REFERENCES, SCALE
from cloudjob.restoration import band_choice
from cloudjob.restoration.blend import OBSERVED
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.foreign import NO_REFLECTANCE
from cloudjob.sentinel2 import decode, foreign_masks, masks, radiometry
from cloudjob.sentinel2.radiometry import digital_number, reflectance
from cloudjob.sentinel2.scene import reduction

_BAND_NAMES = ("band", "bands", "variable")  # of the dimension of bands, in xarray


@dataclass(frozen=True)
class Given:
    """An image as it was given: `values` (4, H, W) float32 reflectance, NaN without data, and `dn`, the same as uint16
    DN. `labelled` is the DataArray that it came as, if it did."""

    values: NDArray
    dn: NDArray
    labelled: Any = None

    @classmethod
    def of(cls, image: Any, *, scale: float, offset: float) -> Self:
        """See `cloudjob.restore`. ConfigError where it does not have the four bands."""
        labelled = _four_bands(image) if _is_labelled(image) else None
        array = np.asarray(image if labelled is None else labelled)
        if array.ndim != 3 or len(array) != len(BANDS):
            raise ConfigError(
                f"an image of shape {array.shape}; expected (4, rows, columns): red, green, blue, near infrared"
            )
        if array.dtype.kind == "f":
            values = array.astype(np.float32)
        elif array.dtype.kind in "iu":
            values = np.where(array == 0, np.nan, array * scale + offset).astype(np.float32)
        else:
            raise ConfigError(
                f"an image of {array.dtype}; expected reflectance, or whole numbers with scale and offset"
            )
        finite = np.isfinite(values)
        if finite.any() and (middle := float(np.median(values[finite]))) > NO_REFLECTANCE:
            raise ConfigError(
                f"an image with a median of {middle:g}, which is no reflectance; floating-point numbers must be "
                "reflectance, of about 0 to 1: divide them by 10000, for instance"
            )
        dn = digital_number(np.where(finite, values, np.nan).astype(np.float64))
        dn[:, (dn == EMPTY_DN).any(0)] = EMPTY_DN
        return cls(values, dn, labelled)

    @property
    def shape(self) -> tuple[int, int]:
        return self.dn.shape[1], self.dn.shape[2]

    def put_back(self, dn: NDArray, flags: NDArray) -> NDArray:
        """(4, H, W) float32 reflectance of a restored scene (DN); what was observed, and holes, as they were given."""
        return np.where((flags == OBSERVED) | (flags == NO_DATA), self.values, reflectance(dn))

    def like(self, array: NDArray) -> Any:
        """An array (4, H, W) or (H, W) of the image's pixels, labelled as the image was."""
        if self.labelled is None:
            return array
        form = self.labelled if array.ndim == 3 else self.labelled.isel({self.labelled.dims[0]: 0}, drop=True)
        return form.copy(data=array)


def _is_labelled(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] == "xarray"


def _four_bands(image: Any) -> Any:
    """A DataArray of the four bands in our order, first of its dimensions, from a DataArray or a Dataset of more."""
    if hasattr(image, "data_vars"):
        image = image[[name for name in image.data_vars if image[name].ndim >= 2]].to_dataarray("band")
    image = image.squeeze(drop=True) if image.ndim > 3 else image
    dimension = next((name for name in _BAND_NAMES if name in image.dims), image.dims[0])
    image = image.transpose(dimension, ...)
    known = image[dimension].values if dimension in image.coords else [""] * image.sizes[dimension]
    names = [str(value) for value in known]
    places = band_choice.by_names(names)
    if places is None and image.sizes[dimension] != len(BANDS):
        raise band_choice.unknown("the image", names)
    return image if places is None else image.isel({dimension: places})


def classes(mask: Any, shape: tuple[int, int], values: dict[str, list[int]] | str | None) -> NDArray:
    """(H, W) uint8 mask classes; see `cloudjob.restore`."""
    array = np.asarray(mask)
    if array.shape != shape:
        raise ConfigError(f"a mask of shape {array.shape}, the image has {shape} pixels")
    if array.dtype == bool:
        return np.where(array, np.uint8(CLOUD), np.uint8(CLEAR))
    if isinstance(values, str) and values not in foreign_masks.NAMES:
        raise ConfigError(f"mask_values = {values!r}; choose one of {', '.join(foreign_masks.NAMES)}")
    meaning = foreign_masks.HOUSE if values is None else values
    return foreign_masks.classes(array, meaning, source=Path("mask"), cure="say it in mask_values")


def dates(clear: Any, image: Given, *, scale: float, offset: float) -> list[NDArray]:
    """(4, H, W) uint16 DN of the clear dates, of the first ones where there are too many."""
    several = clear if isinstance(clear, Sequence) else [clear]
    found = [Given.of(each, scale=scale, offset=offset) for each in several[: len(REFERENCES)]]
    if len(several) > len(found):
        warnings.warn(f"{len(several)} clear dates; the first {len(found)} are taken", stacklevel=3)
    for each in found:
        if each.shape != image.shape:
            raise ConfigError(f"a clear date of {each.shape} pixels, the image has {image.shape}")
        if each.labelled is not None and image.labelled is not None:
            _check_place(each.labelled, image.labelled)
    return [each.dn for each in found]


def days(given: float | Sequence[float | None] | None, count: int) -> tuple[float | None, ...]:
    """The days of so many clear dates; None where they are not known."""
    several = list(given) if isinstance(given, Sequence) else [given]
    return tuple([*several, *[None] * count][:count])


def _check_place(other: Any, image: Any) -> None:
    """ConfigError where the coordinates say that two images lie on different pixels."""
    for name in image.dims[1:]:
        both = name in image.coords and name in other.coords
        if both and not np.allclose(image[name].values, other[name].values, rtol=0, atol=_hair(image[name].values)):
            raise ConfigError(f"a clear date on other pixels than the image, by its {name}: reproject it first")


def _hair(places: NDArray) -> float:
    """A hundredth of the way between two pixels."""
    return 0.01 * float(abs(places[1] - places[0])) if len(places) > 1 else 0.0


def conditions(
    dn: NDArray,
    core: NDArray,
    dates: Sequence[NDArray],
    *,
    grown: bool,
    pixel_m: float,
    sun_elevation: float | None,
    days: Sequence[float | None],
) -> SceneConditions:
    """The conditions of a scene from arrays on the same pixels; see `cloudjob.restore`."""
    mask = core.copy() if grown else masks.grow(core, masks.Settings(), pixel_m=pixel_m)
    mask[(dn == EMPTY_DN).any(0)] = NO_DATA
    references = tuple(matched(other, dn, mask == CLEAR) for other in dates)
    return SceneConditions(dn, mask, core, references, sun_elevation, tuple(days))


def matched(other: NDArray, cloudy: NDArray, clear: NDArray) -> NDArray:
    """Another date (4, H, W) uint16 DN, EMPTY_DN where it is not clear, normalised to the cloudy one, which is `clear`
    in these pixels (H, W)."""
    step = reduction(cloudy.shape[1:])
    source, target = (np.stack([decode.means(band, step) for band in image]) for image in (other, cloudy))
    usable = masks.pool(clear, step, np.logical_and)
    return radiometry.fit(source, target, usable).apply(other, height=cloudy.shape[1])


def deviation(spread: NDArray | None) -> NDArray | None:
    """(4, H, W) float32 reflectance of a deviation in DN."""
    return None if spread is None else spread.astype(np.float32) * np.float32(SCALE)
