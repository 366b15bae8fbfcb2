"""Figures of a page that needs no other file: curves and histograms as inline SVG, pictures as data."""

import base64
import math
from collections.abc import Sequence
from html import escape

_COLOUR = "#06c"
_LEFT, _WIDTH, _TOP, _HEIGHT = 60, 900, 20, 200  # of the area that a curve fills, in units of the SVG
_BARS, _TALLEST = 300, 80  # width of all bars together, height of the tallest one


def curve(points: Sequence[tuple[float, float]], *, label: str, unit: str) -> str:
    """Points (x, y > 0) joined by a line, y on a logarithmic axis, x from 0; at least two."""
    xs = [x for x, _ in points]
    ys = [math.log10(y) for _, y in points]
    low, high = min(ys), max(max(ys), min(ys) + 1e-6)
    at = [
        f"{_LEFT + _WIDTH * x / xs[-1]:.1f},{_TOP + _HEIGHT * (high - y) / (high - low):.1f}"
        for x, y in zip(xs, ys, strict=True)
    ]
    return (
        f"<svg viewBox='0 0 1000 260' role=img aria-label='{escape(label)}'>"
        f"<polyline fill=none stroke='{_COLOUR}' stroke-width=2 points='{' '.join(at)}'/>"
        f"<text x=0 y=25>{10**high:.3g}</text><text x=0 y=222>{10**low:.3g}</text>"
        f"<text x=60 y=250>0</text><text x=880 y=250>{xs[-1]} {escape(unit)}</text></svg>"
    )


def histogram(values: Sequence[float], edges: Sequence[float], title: str) -> str:
    """One bar per value; the first and the last edge are written below."""
    top, width = max(max(values), 1e-9), _BARS / len(values)
    bars = "".join(
        f"<rect x={10 + place * width:.1f} y={100 - _TALLEST * value / top:.1f} width={width - 1:.1f} "
        f"height={_TALLEST * value / top:.1f} fill='{_COLOUR}'/>"
        for place, value in enumerate(values)
    )
    return (
        f"<svg viewBox='0 0 320 125' width=320 role=img aria-label='{escape(title)}'>"
        f"<text x=10 y=12 font-size=12>{escape(title)}</text>{bars}<text x=10 y=116 font-size=11>{edges[0]:g}</text>"
        f"<text x=310 y=116 font-size=11 text-anchor=end>{edges[-1]:g}</text></svg>"
    )


def picture(png: bytes, *, alt: str, caption: str) -> str:
    """A PNG with its caption."""
    data = base64.b64encode(png).decode()
    return (
        f"<figure><img alt='{escape(alt)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
