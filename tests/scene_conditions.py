"""The conditions of a scene, made by ranks side by side and compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from worlds import together

from cloudjob.restoration.conditions import SceneConditions


def made_by(size: int, folder: Path, work: Callable[[Any], Any]) -> SceneConditions:
    """What so many ranks leave in the folder when each of them does this `work`."""
    folder.mkdir(exist_ok=True)
    for problem in together(size, work):
        if problem:
            raise problem
    return SceneConditions.load(folder)


def equal(one: SceneConditions, other: SceneConditions) -> None:
    """Bit for bit."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("cloudy", "mask", "core")}
    pairs |= {f"date {n}": dates for n, dates in enumerate(zip(one.references, other.references, strict=True))}
    for name, (was, is_now) in pairs.items():
        assert was.dtype == is_now.dtype, name
        np.testing.assert_array_equal(was, is_now, err_msg=name)
    assert (one.sun_elevation, one.reference_days) == (other.sun_elevation, other.reference_days)
