"""What can be done about clouds without learning from other scenes: from the cloudy date alone, and from clear dates.

Images are (bands, H, W) float32 reflectance, NaN without data. `known` is (H, W) bool: where the cloudy date shows the
ground. Known pixels come back as they are.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import spsolve
from scipy.spatial.distance import cdist
from skimage.restoration import inpaint_biharmonic
from skimage.transform import resize

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import Conditions, Normalisation

_NOTHING_KNOWN = 0.2  # reflectance
_MOST_UNKNOWN = 2**17  # pixels: 2 s and 0.5 GB

_POINTS = 500  # that the process over similar pixels is conditioned on
_RIDGE = 1e-3  # of the mean variance of the dates' bands
_SLOPE_ONE = 0.02  # squared reflectance: what 50 pixels of a spread of 0.02 would say for a slope of 1
_FILL_ERROR, _SENSOR = 0.01, 0.005  # reflectance: deviations of a fill's detail from the ground, and of the noise
_LOCAL = 4.0  # Gaussian sigma in pixels of the local regression


# --- from one date ---------------------------------------------------------------------------------------------------


def mean_fill(image: NDArray, known: NDArray) -> NDArray:
    """The image with the mean of each band's known pixels in the others; 0.2 where nothing is known.

    known: (H, W) bool; pixels without data (NaN) are not known.
    """
    known = known & np.isfinite(image).all(0)
    mean = image[:, known].mean(1, dtype=np.float64) if known.any() else np.full(len(image), _NOTHING_KNOWN)
    return np.where(known, image, mean[:, None, None]).astype(np.float32)


def smooth_fill(image: NDArray, known: NDArray) -> NDArray:
    """The image with a smooth surface through the known pixels in the others, within each band's range of them.

    Biharmonic (Damelin & Hoang 2018, doi:10.1155/2018/3950312, by scikit-image). Where more than 2^17 pixels are not
    known, these come from the same at half the resolution, by bilinear interpolation. `known` as for `mean_fill`.
    """
    known = known & np.isfinite(image).all(0)
    filled = mean_fill(image, known)
    if known.all() or not known.any():
        return filled
    if np.count_nonzero(~known) <= _MOST_UNKNOWN:
        return inpaint_biharmonic(filled, ~known, split_into_regions=True, channel_axis=0)
    rows, cols = known.shape
    coarse = smooth_fill(*_half(filled, known))
    fine = resize(coarse, (len(image), 2 * coarse.shape[1], 2 * coarse.shape[2]), order=1, mode="edge")
    return np.where(known, filled, fine[:, :rows, :cols])


def _half(image: NDArray, known: NDArray) -> tuple[NDArray, NDArray]:
    """Means of the known pixels of each 2 x 2, and where there are any."""
    edge = [(0, size % 2) for size in known.shape]
    known, image = np.pad(known, edge), np.pad(np.where(known, image, 0), [(0, 0), *edge])
    count = known[::2, ::2].astype(np.float32) + known[1::2, ::2] + known[::2, 1::2] + known[1::2, 1::2]
    total = image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]
    return total / count.clip(1), count > 0


# --- from other, clear dates -----------------------------------------------------------------------------------------
def first_guess(cloudy: NDArray, reference: NDArray, mask: NDArray) -> NDArray:
    """The reference, shifted to agree with the clear surroundings: what models started from before `similarity`.

    mask: (H, W) uint8 classes.
    """
    nothing = torch.full((1, 1), torch.nan)
    images = {"cloudy": torch.from_numpy(cloudy)[None], "references": torch.from_numpy(reference)[None, None]}
    numbers: dict[str, Any] = {"reference_days": nothing, "target_days": nothing[0], "sun_elevation": nothing[0]}
    batch = Batch(**images, mask=torch.from_numpy(mask)[None], **numbers)
    unchanged = Normalisation((0.0,) * len(cloudy), (1.0,) * len(cloudy))
    return Conditions.of(batch, norm=unchanged, first_guess="surroundings").anchor[0].numpy()


def poisson_fill(cloudy: NDArray, reference: NDArray, known: NDArray) -> NDArray:
    """The reference with the cloudy date's values at the border of what is known, and its own gradients inside.

    Seamless cloning (Perez et al. 2003, doi:10.1145/882262.882269, eq. 4): the difference of the two is harmonic. NaN
    where the reference has no data; a hole that touches no known pixel keeps the reference.
    """
    known = known & np.isfinite(cloudy).all(0)
    present = np.isfinite(reference).all(0)
    difference = _harmonic(np.where(known & present, cloudy - reference, 0), known & present, ~known & present)
    return np.where(known, cloudy, np.where(present, reference + difference, np.nan)).astype(np.float32)


def _harmonic(values: NDArray, known: NDArray, wanted: NDArray) -> NDArray:
    """The values (bands, H, W), which are those of the known pixels, with the mean of their neighbours in each of the
    wanted ones. Pixels that are neither are no neighbours."""
    number = np.full(np.pad(wanted, 1).shape, -1)
    number[1:-1, 1:-1][wanted] = np.arange(np.count_nonzero(wanted))
    row, col = np.nonzero(np.pad(wanted, 1))
    border, inside = np.pad(known, 1), np.pad(values, [(0, 0), (1, 1), (1, 1)])
    neighbours = np.array([(row + down, col + right) for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0))])
    linked = number[neighbours[:, 0], neighbours[:, 1]]
    fixed = border[neighbours[:, 0], neighbours[:, 1]]
    each, own = np.nonzero(linked >= 0)
    links = sparse.csc_array((np.ones(len(own)), (own, linked[each, own])), shape=(len(row),) * 2)
    degree = (fixed | (linked >= 0)).sum(0)
    sums = (inside[:, neighbours[:, 0], neighbours[:, 1]] * fixed).sum(1)
    reached = np.isin(label := ndimage.label(wanted)[0][wanted], label[fixed.any(0)])
    found = values.copy()
    if reached.any():
        system = sparse.diags_array(degree[reached].astype(float)) - links[reached][:, reached]
        solution = np.zeros((len(values), len(row)))
        solution[:, reached] = spsolve(system.tocsc(), sums[:, reached].T).reshape(-1, len(values)).T
        found[:, wanted] = solution
    return found


def similar_pixels(cloudy: NDArray, references: NDArray, known: NDArray, *, seed: int) -> NDArray:
    """A regression of the cloudy date on the references (R, bands, H, W), and a Gaussian process for what it leaves.

    The process (Rasmussen & Williams 2006, eq. 2.25) varies over the ground and over the spectrum: its covariance, in
    units of 0.02 of reflectance, is exp(-d / 25) + 8 exp(-d / 100) exp(-s^2 / 2 h^2) + 4, with noise 1, d the distance
    in pixels, s that of all bands of the references, h = 0.06 sqrt(R). It knows at most 500 pixels, drawn by `seed`,
    the nearer to hidden ones the likelier. NaN where the first reference has no data; where only the first few have,
    these alone are used.
    """
    known = known & np.isfinite(cloudy).all(0)
    present = np.isfinite(references).all((0, 1))
    result = np.where(known, cloudy, np.nan).astype(np.float32)
    if (wanted := ~known & present).any() and (known & present).any():
        result[:, wanted] = _process(cloudy, references, known & present, wanted, np.random.default_rng(seed))
    elif len(references) == 1:  # nothing is known: nothing to add to it
        result[:, wanted] = references[0][:, wanted]
    if len(references) > 1 and (missing := ~known & np.isnan(result).any(0)).any():
        result[:, missing] = similar_pixels(cloudy, references[:-1], known, seed=seed)[:, missing]
    return result


def _process(
    cloudy: NDArray, references: NDArray, known: NDArray, wanted: NDArray, rng: np.random.Generator
) -> NDArray:
    """(bands, n) the mean of the process in the wanted pixels, from some of the known ones."""
    spectra = references.reshape(-1, *known.shape)
    trend = _regression(cloudy, spectra, known)
    weight = 1 / (3 + ndimage.distance_transform_edt(~wanted)[known])
    count = min(_POINTS, len(weight))
    drawn = np.argwhere(known)[np.sort(rng.choice(len(weight), count, replace=False, p=weight / weight.sum()))]
    (near, near_spectra), (far, far_spectra) = ((at, spectra[:, *at.T].T) for at in (drawn, np.argwhere(wanted)))
    similar = 2 * 0.06**2 * len(references)

    def covariance(places: NDArray, seen: NDArray) -> NDArray:
        apart = cdist(places, near)
        return np.exp(-apart / 25) + 8 * np.exp(-apart / 100 - cdist(seen, near_spectra, "sqeuclidean") / similar) + 4

    left = (cloudy - trend)[:, *near.T].T
    weights = cho_solve(cho_factor(covariance(near, near_spectra) + np.eye(count)), left)
    return trend[:, wanted] + (covariance(far, far_spectra) @ weights).T


def _regression(cloudy: NDArray, spectra: NDArray, known: NDArray) -> NDArray:
    """The cloudy date as the known pixels explain it by all bands (F, H, W) of all references: of one reference band by
    band, drawn to a slope of 1, of several by ridge regression (Hoerl & Kennard 1970)."""
    x, y = spectra[:, known].astype(np.float64), cloudy[:, known].astype(np.float64)
    mean_x, mean_y = x.mean(1), y.mean(1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    if len(spectra) == len(cloudy):
        slopes = np.diag(((x * y).sum(1) + _SLOPE_ONE) / ((x * x).sum(1) + _SLOPE_ONE))
    else:
        inner = x @ x.T
        slopes = np.linalg.solve(inner + (_RIDGE * np.trace(inner) / len(x) + 1e-9) * np.eye(len(x)), x @ y.T).T
    return np.tensordot(slopes, spectra, 1) + (mean_y - slopes @ mean_x)[:, None, None]


def see_through(cloudy: NDArray, fill: NDArray, known: NDArray) -> NDArray:
    """A fill with the detail that thin cloud lets through: Wiener's estimate, where cloudy = t ground + c.

    The transmission t is the slope of the cloudy image on the fill in the neighbourhood, all bands together, as in the
    guided filter (He et al. 2013, doi:10.1109/TPAMI.2012.213, eq. 5); what the line leaves is t (ground - fill) and
    texture of the cloud.
    """
    hidden = ~known & np.isfinite(cloudy).all(0) & np.isfinite(fill).all(0)
    weight = hidden.astype(np.float32)

    def mean(image: NDArray) -> NDArray:
        total = ndimage.gaussian_filter(np.where(hidden, image, 0), _LOCAL, axes=(-2, -1))
        return total / np.maximum(ndimage.gaussian_filter(weight, _LOCAL), 1e-6)

    detail, seen = fill - mean(fill), cloudy - mean(cloudy)
    variance, common = mean(detail**2).sum(0), mean(detail * seen).sum(0)
    transmission = (common / (variance + 1e-5)).clip(0, 1)
    left = seen - transmission * detail
    power = (transmission * _FILL_ERROR) ** 2
    gain = transmission * _FILL_ERROR**2 / np.maximum(mean(left**2), power + _SENSOR**2)
    return np.where(hidden, fill + gain * left, fill).astype(np.float32)
