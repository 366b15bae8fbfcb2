"""Digital numbers and reflectance; the radiometric normalisation of one date to another, and the shift between them."""

from dataclasses import dataclass

import numpy as np

from cloudjob.pixels import BANDS, EMPTY_DN, OFFSET, SCALE

_SHIFT = 1000  # OFFSET in digital numbers, with the other sign

_MIN_PIXELS, _MIN_SPREAD = 500, 30.0  # a line needs so many pixels, and this standard deviation of them (DN)
_GAINS = (0.5, 2.0)  # between two dates of a season illumination changes no more; beyond, the ground itself changed
_HUBER = 1.345  # robust standard deviations; 95 % efficient on normal errors (Huber 1981)
_FLAT = 100.0  # DN; a smaller rmse is good, whatever r2 says of ground that hardly varies
_NODES = 16  # of the grid of offsets along a side; at least 8 pixels per node
_CHIPS = 3  # that must agree on a shift
_CHANCE = 40.0  # divided by the side of a chip: twice the correlation that unrelated chips of 64 to 256 pixels reached

_USABLE, _SPREAD = 0.9, 0.5  # share of a chip that must be clear; pixels by which chips may disagree
_START_PIXELS = 1000  # that the repeated medians take: they compare each pair of them


def to_convention(dn: np.ndarray, *, offset: int, quantification: float = 10000) -> np.ndarray:
    """The source's DN, uint16 with EMPTY_DN = no data, in our convention.

    `offset` is BOA_ADD_OFFSET of the product (-1000 from processing baseline 04.00 on, 0 before; ESA PSD 14.9):
    reflectance = (DN + offset) / quantification. With ESA's numbers (-1000, 10000) the array comes back as it is.
    """
    if offset == -_SHIFT and quantification == 10000:
        return dn
    out = (dn.astype(np.float32) + offset) * (10000 / quantification) + _SHIFT
    return np.where(dn == EMPTY_DN, EMPTY_DN, np.clip(np.rint(out), 1, 65535)).astype(np.uint16)


def from_convention(dn: np.ndarray, *, offset: int) -> np.ndarray:
    """Our DN as a product with BOA_ADD_OFFSET `offset` stores it: 15 bits, 1..32767, EMPTY_DN = no data."""
    out = np.clip(dn.astype(np.int32) - _SHIFT - offset, 1, 32767)
    return np.where(dn == EMPTY_DN, EMPTY_DN, out).astype(np.uint16)


def reflectance(dn: np.ndarray) -> np.ndarray:
    """Surface reflectance, float32, NaN where there is no data."""
    out = dn.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
    out[dn == EMPTY_DN] = np.nan
    return out


def digital_number(values: np.ndarray) -> np.ndarray:
    """uint16 DN of a reflectance; NaN becomes EMPTY_DN, all else is clipped to the valid 1..65535."""
    dn = np.clip(np.rint((values - OFFSET) / SCALE), 1, 65535)
    return np.where(np.isnan(values), EMPTY_DN, dn).astype(np.uint16)


@dataclass(frozen=True)
class Match:
    """The radiometric normalisation of one date to another: a line per band, maybe offsets that vary in the scene.

    `lines`: for each of BANDS gain, offset (DN), r2 and rmse (DN) of the line, pixels (how many were usable). r2 and
    rmse are None where a line could not be measured. `grid`: (4, gh, gw) float32 DN added on top of the line; the
    scene is cut into gh x gw equal cells, a node lies in the middle of each, and between nodes it is bilinear.
    """

    lines: list[dict]
    grid: np.ndarray | None = None

    @property
    def r2(self) -> float | None:
        """The lowest r2 of the bands; None where none could be measured."""
        return min((line["r2"] for line in self.lines if line["r2"] is not None), default=None)

    def poor(self, min_r2: float) -> list[str]:
        """The bands that the line does not explain, in words. A band that fits to 0.01 of reflectance is not poor."""
        return [
            f"{band} R2 {line['r2']:.2f}, RMSE {line['rmse'] * SCALE:.3f}"
            for band, line in zip(BANDS, self.lines, strict=True)
            if line["r2"] is not None and line["r2"] < min_r2 and line["rmse"] > _FLAT
        ]

    def facts(self) -> dict:
        """Everything, as plain numbers and lists."""
        return {"lines": self.lines, "grid": None if self.grid is None else np.round(self.grid, 2).tolist()}

    def apply(self, dn: np.ndarray, *, top: int = 0, height: int) -> np.ndarray:
        """(4, r, W) uint16 DN, normalised: the rows from `top` on of a scene of `height` rows. No data stays no data.

        `dn` spans the whole width, at any resolution. Stripes join exactly to what the whole scene gives.
        """
        out = np.empty_like(dn)
        for band, line in enumerate(self.lines):
            if self.grid is None:
                _by_table(dn[band], line, out[band])
            else:
                _by_grid(dn[band], line, self.grid[band], out[band], top, height)
        return out


def _by_table(dn: np.ndarray, line: dict, out: np.ndarray) -> None:
    values = np.rint(np.arange(65536) * line["gain"] + line["offset"])
    table = np.clip(values, 1, 65535).astype(np.uint16)
    table[EMPTY_DN] = EMPTY_DN
    for rows in _blocks(len(dn)):
        np.take(table, dn[rows], out=out[rows], mode="clip")  # the default mode looks for bad indices, and copies


def _by_grid(dn: np.ndarray, line: dict, grid: np.ndarray, out: np.ndarray, top: int, height: int) -> None:
    low, high, part = _between(np.arange(top, top + len(dn)), height, grid.shape[0])
    down = grid[low] + part[:, None] * (grid[high] - grid[low]) + np.float32(line["offset"])  # (r, gw)
    west, east, across = _between(np.arange(dn.shape[1]), dn.shape[1], grid.shape[1])
    for rows in _blocks(len(dn)):
        values = down[rows][:, east]
        start = down[rows][:, west]
        values -= start
        values *= across
        values += start
        values += dn[rows] * np.float32(line["gain"])
        np.clip(np.rint(values, out=values), 1, 65535, out=values)
        out[rows] = values
        out[rows] *= dn[rows] != EMPTY_DN


def _blocks(rows: int) -> list[slice]:
    """Rows that stay in the processor's cache."""
    return [slice(first, min(first + 16, rows)) for first in range(0, rows, 16)]


def _between(pixels: np.ndarray, length: int, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of a side of `length` pixels the nodes before and behind it and how far it is between them."""
    place = np.clip((pixels + 0.5) * (nodes / length) - 0.5, 0, nodes - 1)
    low = place.astype(np.intp)
    return low, np.minimum(low + 1, nodes - 1), (place - low).astype(np.float32)


def fit(source: np.ndarray, target: np.ndarray, usable: np.ndarray, *, grid: bool = False) -> Match:
    """The normalisation of `source` (another date) to `target`, both (4, h, w) uint16 DN, of any reduced resolution.

    `usable` (h, w) bool is where both are clear. Per band a line: repeated medians to begin with (Siegel 1982: up to
    half of the pixels may have changed), then Huber's M-estimator on those that did not: pixels further off the line
    than 2.69 robust standard deviations, where Huber's weight falls below a half, get no weight at all. (With all
    pixels Huber follows the change, since snow or cloud on one date is far out along x as well.) r2 and rmse are of
    the same pixels. Where fewer than 500 pixels are usable or the source hardly varies, only the medians are brought
    together (gain 1), and where no pixel is, nothing is done; r2 and rmse are None then. A gain outside 0.5..2 does
    not come from illumination either: the medians are brought together, and r2 tells how well that fits.

    With `grid` the local median of the residuals is added on top (see `Match`), smooth over some 16ths of the scene.
    """
    usable = usable & (source != EMPTY_DN).all(0) & (target != EMPTY_DN).all(0)
    pixels = [(s[usable].astype(np.float32), t[usable].astype(np.float32)) for s, t in zip(source, target, strict=True)]
    lines = [_line(x, y) for x, y in pixels]
    if not grid:
        return Match(lines)
    rows, cols = np.nonzero(usable)
    shape = [min(_NODES, -(-side // 8)) for side in usable.shape]
    cells = rows * shape[0] // usable.shape[0] * shape[1] + cols * shape[1] // usable.shape[1]
    offsets = [
        _local_offsets(y - (line["gain"] * x + line["offset"]), cells, shape)
        for line, (x, y) in zip(lines, pixels, strict=True)
    ]
    return Match(lines, np.stack(offsets))


def _line(x: np.ndarray, y: np.ndarray) -> dict:
    if x.size == 0:
        return {"gain": 1.0, "offset": 0.0, "r2": None, "rmse": None, "pixels": 0}
    few = slice(None, None, -(-x.size // 250_000))  # a quarter of a million pixels settle two numbers
    fx, fy = x[few].astype(np.float64), y[few].astype(np.float64)
    gain, offset, r2, rmse = 1.0, float(np.median(fy) - np.median(fx)), None, None
    if x.size >= _MIN_PIXELS and fx.std() >= _MIN_SPREAD:
        slope, intercept = _huber(fx, fy)
        if _GAINS[0] <= slope <= _GAINS[1]:
            gain, offset = slope, intercept
        r2, rmse = _quality(fx, fy, gain, offset)
    return {"gain": round(gain, 6), "offset": round(offset, 3), "r2": r2, "rmse": rmse, "pixels": int(x.size)}


def _repeated_medians(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Siegel's slope and intercept, as scipy.stats.siegelslopes gives them, which takes two seconds to import."""
    dx, dy = x[:, None] - x, y[:, None] - y
    slopes = np.divide(dy, dx, out=np.full(dx.shape, np.nan, dx.dtype), where=dx != 0)
    slopes.sort(axis=1)  # NaN comes last; three times as fast as numpy.nanmedian
    count = np.isfinite(slopes).sum(1)
    slopes, count = slopes[count > 0], count[count > 0]
    lower, upper = (np.take_along_axis(slopes, middle[:, None], 1) for middle in ((count - 1) // 2, count // 2))
    slope = float(np.median((lower + upper) / 2))
    return slope, float(np.median(y - slope * x))


def _huber(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept by iteratively reweighted least squares; half of the pixels cannot spoil its start."""
    few = slice(None, None, -(-x.size // _START_PIXELS))
    slope, intercept = _repeated_medians(x[few], y[few])
    for _ in range(50):
        weight = _weights(y - (slope * x + intercept))
        total = weight.sum()
        mx, my = weight @ x / total, weight @ y / total
        step = weight @ ((x - mx) * (y - my)) / (weight @ (x - mx) ** 2) - slope
        slope += step
        intercept = my - slope * mx
        if abs(step) < 1e-6:
            break
    return float(slope), float(intercept)


def _weights(residual: np.ndarray) -> np.ndarray:
    """Huber's weights, 0 for changed pixels; the scale is 1.4826 median absolute deviations, at least half a DN
    (rounding)."""
    distance = np.abs(residual)
    scale = max(1.4826 * np.median(distance), 0.5)
    weight = np.minimum(1.0, _HUBER * scale / np.maximum(distance, 1e-9))
    return np.where(weight >= 0.5, weight, 0.0)


def _quality(x: np.ndarray, y: np.ndarray, gain: float, offset: float) -> tuple[float | None, float]:
    residual = y - (gain * x + offset)
    kept = _weights(residual) > 0
    residual, variance = residual[kept], y[kept].var()
    r2 = round(float(1 - residual.var() / variance), 4) if variance > 0 else None
    return r2, round(float(np.sqrt(np.mean(residual**2))), 3)


def _local_offsets(residual: np.ndarray, cells: np.ndarray, shape: list[int]) -> np.ndarray:
    """(gh, gw) float32 DN: the median residual of each cell, smoothed over the cells around it.

    A normalised convolution (Knutsson and Westin 1993) with pixel counts for certainty. The kernel, (1 + d^2)^-2 of
    the distance in cells, never ends: a cell without pixels takes the nearest medians, however far off.
    """
    count = np.bincount(cells, minlength=shape[0] * shape[1])
    if not count.any():
        return np.zeros(shape, np.float32)
    order = np.argsort(cells, kind="stable")
    parts = np.split(residual[order], np.cumsum(count)[:-1])
    median = np.array([np.median(part) if part.size else 0.0 for part in parts])
    row, col = (place.ravel() for place in np.indices(shape))
    kernel = 1.0 / (1.0 + np.subtract.outer(row, row) ** 2 + np.subtract.outer(col, col) ** 2) ** 2
    return (kernel @ (count * median) / (kernel @ count)).reshape(shape).round(2).astype(np.float32)


def shift(pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict:
    """How far the ground of the second date lies off that of the first, in pixels: {"row", "col", "chips"}, with the
    number of chips that were measured.

    `pairs` are chips (n, m) of one band of both dates, and (n, m) bool where both are clear. Each is measured by phase
    correlation to a 20th of a pixel (Guizar-Sicairos 2008); the result is the median. It cannot be measured - row and
    col are None, and `why` says why - where fewer than 3 chips are nearly all clear and correlate better than
    unrelated ground does, or where they disagree.
    """
    found = []
    for first, second, usable in pairs:
        usable = usable & (first != EMPTY_DN) & (second != EMPTY_DN)
        if usable.mean() >= _USABLE:
            row, col, correlation = _displacement(first, second, usable)
            if correlation >= _CHANCE / min(first.shape):
                found.append((row, col))
    unknown = {"row": None, "col": None, "chips": len(found)}
    if len(found) < _CHIPS:
        return unknown | {"why": f"{len(found)} of {len(pairs)} places are clear and alike, {_CHIPS} are needed"}
    middle = np.median(found, axis=0)
    spread = np.median(np.abs(found - middle), axis=0).max()
    if spread > _SPREAD:
        return unknown | {"why": f"{len(found)} places disagree by {spread:.1f} pixels"}
    row, col = (round(float(value) + 0.0, 3) for value in middle)
    return {"row": row, "col": col, "chips": len(found)}


def _displacement(first: np.ndarray, second: np.ndarray, usable: np.ndarray) -> tuple[float, float, float]:
    """(rows, columns, correlation of the chips once this is undone)."""
    from scipy.ndimage import fourier_shift
    from skimage.registration import phase_cross_correlation

    a, b = (_details(chip, usable) for chip in (first, second))
    if min(a.std(), b.std()) < 0.1:  # DN: nothing but rounding
        return 0.0, 0.0, 0.0
    back, _, _ = phase_cross_correlation(a, b, upsample_factor=20)
    b = np.fft.ifftn(fourier_shift(np.fft.fftn(b), back)).real
    return -back[0], -back[1], float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _details(chip: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """A chip minus its mean over some 10 usable pixels, in a Hann window; 0 where not usable, so that holes, which both
    dates have in common, leave no edge to correlate."""
    from scipy.ndimage import gaussian_filter

    mean = gaussian_filter(np.where(usable, chip, 0).astype(np.float64), 4) / np.maximum(
        gaussian_filter(usable.astype(np.float64), 4), 1e-6
    )
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in chip.shape))
    return np.where(usable, chip - mean, 0.0) * window
