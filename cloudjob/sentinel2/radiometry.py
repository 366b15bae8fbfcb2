"""Digital numbers, reflectance, and the radiometric match of one date onto another.

One convention everywhere (whatever the processing baseline of the source): uint16,
`DN = round(reflectance * 10000) + 1000`, 0 = no data, so snow above 1 and slightly negative water both survive.
"""

import numpy as np

BANDS = ("B04", "B03", "B02", "B08")
NO_DATA = 0
SCALE = 1e-4
OFFSET = -0.1
_SHIFT = 1000  # OFFSET in digital numbers, with the other sign


def to_convention(dn: np.ndarray, *, offset: int, quantification: float = 10000) -> np.ndarray:
    """The source's DN, uint16 with 0 = no data, in our convention.

    `offset` is BOA_ADD_OFFSET of the product (-1000 from processing baseline 04.00 on, 0 before; ESA PSD 14.9):
    reflectance = (DN + offset) / quantification. With ESA's numbers (-1000, 10000) the array comes back as it is.
    """
    if offset == -_SHIFT and quantification == 10000:
        return dn
    out = (dn.astype(np.float32) + offset) * (10000 / quantification) + _SHIFT
    return np.where(dn == NO_DATA, NO_DATA, np.clip(np.rint(out), 1, 65535)).astype(np.uint16)


def from_convention(dn: np.ndarray, *, offset: int) -> np.ndarray:
    """Our DN as a product with BOA_ADD_OFFSET `offset` stores it: 15 bits, 1..32767, 0 = no data."""
    out = np.clip(dn.astype(np.int32) - _SHIFT - offset, 1, 32767)
    return np.where(dn == NO_DATA, NO_DATA, out).astype(np.uint16)


def reflectance(dn: np.ndarray) -> np.ndarray:
    """Surface reflectance, float32, NaN where there is no data."""
    out = dn.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
    out[dn == NO_DATA] = np.nan
    return out


def digital_number(values: np.ndarray) -> np.ndarray:
    """uint16 DN of a reflectance; NaN becomes 0 (no data), all else is clipped to the valid 1..65535."""
    dn = np.clip(np.rint((values - OFFSET) / SCALE), 1, 65535)
    return np.where(np.isnan(values), NO_DATA, dn).astype(np.uint16)


def match(source: np.ndarray, target: np.ndarray, usable: np.ndarray) -> list[dict]:
    """Per band the line that takes `source` (another date) to `target`: gain, offset (DN), r2, rmse (DN), pixels.

    Both are (4, H, W) uint16 DN; `usable` (H, W) bool is where both are clear. Repeated medians (Siegel 1982: up to
    half of the pixels may have changed), then least squares without what lies further off than 2.5 robust standard
    deviations (1.4826 median absolute deviations). Where fewer than 500 pixels are usable, or the pixels hardly vary,
    only the medians are brought together (gain 1), or nothing is done (no pixel at all).
    """
    step = max(1, int(np.sqrt(usable.sum() / 250_000)))  # a quarter of a million pixels settle two numbers
    grid = np.s_[::step, ::step]
    return [_match_band(s[grid][usable[grid]], t[grid][usable[grid]]) for s, t in zip(source, target, strict=True)]


def _match_band(x: np.ndarray, y: np.ndarray) -> dict:
    from scipy.stats import siegelslopes  # takes half a second to import, and most readers of DN never match

    x, y = x.astype(np.float64), y.astype(np.float64)
    if x.size == 0:
        return {"gain": 1.0, "offset": 0.0, "r2": None, "rmse": None, "pixels": 0}
    gain, offset = 1.0, float(np.median(y) - np.median(x))
    keep = np.ones(x.size, bool)
    if x.size >= 500 and x.std() > 30:
        few = slice(None, None, -(-x.size // 1000))
        slope, intercept = siegelslopes(y[few], x[few])
        for _ in range(3):
            residual = y - (slope * x + intercept)
            spread = 1.4826 * np.median(np.abs(residual))
            keep = np.abs(residual) <= max(2.5 * spread, 1.0)
            slope, intercept = np.polyfit(x[keep], y[keep], 1)
        if 0.5 < slope < 2:  # light between two dates of a season cannot change more: the pixels did
            gain, offset = float(slope), float(intercept)
    residual = (y - (gain * x + offset))[keep]
    variance = y[keep].var()
    return {
        "gain": round(gain, 6),
        "offset": round(offset, 3),
        "r2": round(float(1 - residual.var() / variance), 4) if variance > 0 else None,
        "rmse": round(float(np.sqrt(np.mean(residual**2))), 3),
        "pixels": int(x.size),
    }


def apply_match(dn: np.ndarray, lines: list[dict]) -> np.ndarray:
    """(4, H, W) uint16 with each band's gain and offset applied; no data stays no data."""
    out = np.empty_like(dn)
    for band, line in enumerate(lines):
        moved = np.clip(np.rint(dn[band] * np.float32(line["gain"]) + np.float32(line["offset"])), 1, 65535)
        out[band] = np.where(dn[band] == NO_DATA, NO_DATA, moved)
    return out
