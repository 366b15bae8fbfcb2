"""How far the ground moves between two dates: sea ice drifts, land does not."""

import numpy as np

from cloudjob.pixels import CLEAR
from cloudjob.sentinel2 import masks, radiometry
from cloudjob.sentinel2.scene_masks import Preview

_METRES = 60  # of a pixel of a preview's picture
_RED = 0  # in a preview's picture
_SIDES = (128, 64)  # of a chip, in these pixels
_CHIPS, _CLEAR_SHARE = 16, 0.95  # chips at most, and the share of one that must be clear


def measure(first: Preview, second: Preview) -> dict:
    """How far the ground of the second date lies off that of the first:

    drift        metres, [most, spread]: the greatest displacement of a chip, and the greatest distance of one from the
                 median; None where fewer than 3 chips are alike. Of land both are below 20 m, which is how well
                 Sentinel-2 places its pixels; a spread tells ice beside land, or ice that breaks up
    drift_chips  [alike, looked at]: chips that correlate better than unrelated ground does, and all

    The chips are of B04 at 60 m, from all over the clear scene, 7.7 km wide (3.8 km in scenes below 31 km), and
    measured as in `radiometry.shift`. A chip tells a drift of up to a third of its width; ice that has gone farther is
    not alike.
    """
    core, other = (masks.pool(date.core == CLEAR, 6 // date.factor, np.logical_and) for date in (first, second))
    clear, chips = core & other, []
    side = next((side for side in _SIDES if min(clear.shape) >= 4 * side), _SIDES[-1])
    for row, col in _places(clear, side):
        here = np.s_[row : row + side, col : col + side]
        chips.append((first.rgb[_RED][here], second.rgb[_RED][here], clear[here]))
    found = _METRES * np.array(radiometry.displacements(chips)).reshape(-1, 2)
    drift = None
    if len(found) >= radiometry.CHIPS:
        off = np.hypot(*found.T).max(), np.hypot(*(found - np.median(found, axis=0)).T).max()
        drift = [round(float(metres), 1) for metres in off]
    return {"drift": drift, "drift_chips": [len(found), len(chips)]}


def _places(clear: np.ndarray, side: int) -> list[tuple[int, int]]:
    """(row, column) of squares side by side that are clear, some of them, evenly, where there are many."""
    if min(clear.shape) < side:
        return []
    rows, cols = (np.linspace(0, length - side, -(-length // side)).astype(int).tolist() for length in clear.shape)
    every = [(row, col) for row in rows for col in cols]
    found = [(row, col) for row, col in every if clear[row : row + side, col : col + side].mean() >= _CLEAR_SHARE]
    return found[:: max(-(-len(found) // _CHIPS), 1)]
