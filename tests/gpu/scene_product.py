"""Makes one product of a large scene: a ninth of it is drawn, and laid out 3 x 3, mirrored at each edge.

scene_product.py ARCHIVE TILE SIZE DAY clear|cloudy
"""

import dataclasses
import sys
from datetime import date
from pathlib import Path

import numpy as np

from cloudjob.archive import make
from cloudjob.archive.synthetic import Acquisition

draw = make.acquire


def laid_out(array: np.ndarray | None) -> np.ndarray | None:
    if array is None:
        return None
    row = np.concatenate([array, array[..., ::-1], array], -1)
    return np.concatenate([row, row[..., ::-1, :], row], -2)


def acquire(*, size: int, **options) -> Acquisition:
    ninth = draw(size=size // 3, **options)
    return Acquisition(**{field.name: laid_out(getattr(ninth, field.name)) for field in dataclasses.fields(ninth)})


archive, tile, size, days = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [date.fromisoformat(sys.argv[4])]
make.acquire = acquire
dates = {"clear": [], "cloudy": []} | {sys.argv[5]: days}
make.make_synthetic(archive, tiles=[tile], size=size, **dates, seed=7, cloud=(0.3, 0.3))
