"""Digital numbers and reflectance; the radiometric normalisation of one date to another, and the shift between them."""

from dataclasses import dataclass

import numpy as np

from cloudjob.pixels import BANDS, EMPTY_DN, OFFSET, SCALE

_SHIFT = 1000  # OFFSET in digital numbers, with the other sign

_MIN_PIXELS, _MIN_SPREAD = 500, 30.0  # a line needs so many pixels, and this standard deviation of them (DN)
_GAINS = (0.25, 4.0)  # a line that is flatter or steeper does not come from illumination, and amplifies noise
_HUBER = 1.345  # robust standard deviations; 95 % efficient on normal errors (Huber 1981)
_FLAT = 100.0  # DN; a smaller rmse is good, whatever r2 says of ground that hardly varies
_NODES = 16  # of the grid of offsets along a side; at least 8 pixels per node
CHIPS = 3  # that must agree on a shift
_CHANCE = 40.0  # divided by the side of a chip: twice the correlation that unrelated chips of 64 to 256 pixels reached

_USABLE, _SPREAD = 0.9, 0.5  # share of a chip that must be clear; pixels by which chips may disagree
_START_PIXELS = 1000  # that the repeated medians take: they compare each pair of them
_TRIMMED, _TRIMMED_PIXELS = 0.6, 20_000  # share of the pixels that a trimmed line is fitted to, and pixels at most
_TRIMMED_SCALE = 2.16  # a normal distribution's standard deviation over that of its central 60 %
_TIGHTER = 0.8  # a trimmed line counts if those pixels lie so much nearer to it than to the usual one


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

    `lines`: for each of BANDS gain, offset (DN), r2 and rmse (DN) of the line on the pixels that did not change, r2_all
    on all that were usable, kept (the share of the former), pixels (how many were usable). All of them but pixels are
    None where a line could not be measured. `grid`: (4, gh, gw) float32 DN added on top of the line; the
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

    def unknown(self) -> list[str]:
        """The bands for which nothing could be measured, in words."""
        return [
            f"{band} has {line['pixels']} jointly clear pixels, {_MIN_PIXELS} are needed"
            for band, line in zip(BANDS, self.lines, strict=True)
            if line["rmse"] is None
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
    the same pixels. A third of the pixels in a shadow that no mask has widens that standard deviation so much that they
    keep their weight: where the least trimmed squares (Rousseeuw 1984) of 60 % of the pixels find a line that these lie
    clearly nearer to, that one begins, and its scale stays. Where fewer than 500 pixels are usable or the source hardly
    varies, only the medians are brought together (gain 1), and where no pixel is, nothing is done; of fewer than 500
    there is neither r2 nor rmse. A gain outside 0.25..4 does not come from illumination: it becomes the nearer of
    these, the medians are brought together, and r2 tells how well that fits.

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
    unknown = {"r2": None, "rmse": None, "r2_all": None, "kept": None, "pixels": int(x.size)}
    if x.size == 0:
        return {"gain": 1.0, "offset": 0.0} | unknown
    few = slice(None, None, -(-x.size // 250_000))  # a quarter of a million pixels settle two numbers
    fx, fy = x[few].astype(np.float64), y[few].astype(np.float64)
    gain, offset, scale = 1.0, float(np.median(fy) - np.median(fx)), None
    if x.size < _MIN_PIXELS:
        return {"gain": gain, "offset": round(offset, 3)} | unknown
    if fx.std() >= _MIN_SPREAD:
        slope, intercept, scale = _robust(fx, fy)
        gain = min(max(slope, _GAINS[0]), _GAINS[1])
        offset = intercept
        if gain != slope:
            offset, scale = float(np.median(fy) - gain * np.median(fx)), None
    quality = _quality(fx, fy, gain, offset, scale)
    return {"gain": round(gain, 6), "offset": round(offset, 3)} | unknown | quality


def _robust(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float | None]:
    """Slope and intercept, and the scale of the residuals where that is not their median absolute deviation's."""
    few = slice(None, None, -(-x.size // _START_PIXELS))
    start = _repeated_medians(x[few], y[few])
    slope, intercept = _huber(x, y, start)
    few = slice(None, None, -(-x.size // _TRIMMED_PIXELS))
    fx, fy = x[few], y[few]
    usual, residual = _trimmed(fx, fy, slope, intercept)[2], fy - (slope * fx + intercept)
    starts = [start, (slope, intercept)]
    for side in (residual >= np.quantile(residual, 1 / 3), residual <= np.quantile(residual, 2 / 3)):
        if fx[side].std() > 0:
            starts.append(_least_squares(fx[side], fy[side]))
    *trimmed, scale = min((_least_trimmed(fx, fy, each) for each in starts), key=lambda found: found[2])
    if not scale < _TIGHTER * usual:
        return slope, intercept, None
    scale = max(_TRIMMED_SCALE * scale, 0.5)
    return *_huber(x, y, (trimmed[0], trimmed[1]), scale), scale


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    mx, my = x.mean(), y.mean()
    slope = float((x - mx) @ (y - my) / max(((x - mx) ** 2).sum(), 1e-9))
    return slope, float(my - slope * mx)


def _trimmed(x: np.ndarray, y: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The 60 % of the pixels that lie nearest to a line, and the root of their mean square distance."""
    distance = np.abs(y - (slope * x + intercept))
    near = np.argpartition(distance, int(_TRIMMED * x.size) - 1)[: int(_TRIMMED * x.size)]
    return x[near], y[near], float(np.sqrt(np.mean(distance[near] ** 2)))


def _least_trimmed(x: np.ndarray, y: np.ndarray, line: tuple[float, float]) -> tuple[float, float, float]:
    """Slope, intercept and scale of the line that concentration steps (Rousseeuw and Van Driessen 2006) lead to."""
    best = (*line, np.inf)
    for _ in range(50):
        near_x, near_y, scale = _trimmed(x, y, *line)
        if not scale < best[2] - 1e-6:
            break
        best, line = (*line, scale), _least_squares(near_x, near_y)
    return best


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


def _huber(x: np.ndarray, y: np.ndarray, line: tuple[float, float], scale: float | None = None) -> tuple[float, float]:
    """Slope and intercept by iteratively reweighted least squares from a first line; `scale` as in `_weights`."""
    slope, intercept = line
    for _ in range(50):
        weight = _weights(y - (slope * x + intercept), scale)
        total = weight.sum()
        mx, my = weight @ x / total, weight @ y / total
        step = weight @ ((x - mx) * (y - my)) / (weight @ (x - mx) ** 2) - slope
        slope += step
        intercept = my - slope * mx
        if abs(step) < 1e-6:
            break
    return float(slope), float(intercept)


def _weights(residual: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Huber's weights, 0 for changed pixels; without another scale it is 1.4826 median absolute deviations, at least
    half a DN (rounding)."""
    distance = np.abs(residual)
    scale = max(1.4826 * np.median(distance), 0.5) if scale is None else scale
    weight = np.minimum(1.0, _HUBER * scale / np.maximum(distance, 1e-9))
    return np.where(weight >= 0.5, weight, 0.0)


def _quality(x: np.ndarray, y: np.ndarray, gain: float, offset: float, scale: float | None) -> dict:
    residual = y - (gain * x + offset)
    kept = _weights(residual, scale) > 0
    rmse = round(float(np.sqrt(np.mean(residual[kept] ** 2))), 3) if kept.any() else None
    r2, r2_all = _r2(residual[kept], y[kept]), _r2(residual, y)
    return {"r2": r2, "rmse": rmse, "r2_all": r2_all, "kept": round(float(kept.mean()), 4)}


def _r2(residual: np.ndarray, y: np.ndarray) -> float | None:
    variance = y.var() if y.size else 0.0
    return round(float(1 - residual.var() / variance), 4) if variance > 0 else None


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
    found = displacements(pairs)
    unknown = {"row": None, "col": None, "chips": len(found)}
    if len(found) < CHIPS:
        return unknown | {"why": f"{len(found)} of {len(pairs)} places are clear and alike, {CHIPS} are needed"}
    middle = np.median(found, axis=0)
    spread = np.median(np.abs(found - middle), axis=0).max()
    if spread > _SPREAD:
        return unknown | {"why": f"{len(found)} places disagree by {spread:.1f} pixels"}
    row, col = (round(float(value) + 0.0, 3) for value in middle)
    return {"row": row, "col": col, "chips": len(found)}


def displacements(pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[tuple[float, float]]:
    """(rows, columns) by which the second chip of a pair lies off the first (see `shift`), of each pair that is nearly
    all clear and correlates better than unrelated ground does."""
    found = []
    for first, second, usable in pairs:
        usable = usable & (first != EMPTY_DN) & (second != EMPTY_DN)
        if usable.mean() >= _USABLE:
            row, col, correlation = _displacement(first, second, usable)
            if correlation >= _CHANCE / min(first.shape):
                found.append((row, col))
    return found


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
