"""Figures of a page, drawn by matplotlib: curves, histograms, a map of footprints. SVG, dark where the page is dark."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Points = Sequence[tuple[float, float]]
Ring = Sequence[Sequence[float]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9")  # Okabe and Ito: told apart by everybody
_INK = "#010203"  # is drawn with where the colour of the page's text is meant
_STYLE = (
    "<style>svg{--ink:#1b1f24}"
    "@media screen and (prefers-color-scheme:dark){svg{--ink:#e6e9ee}}"
    "</style>"
)  # fmt: skip
_SIZE = (4.6, 2.9)  # inches of 72 points: 10 points are still read on a telephone, where all becomes 3/4 as wide
_LINE = 10.5  # points from one name of a map to the one below it
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cloudjob",  # the same figure is the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
}


class Figure:
    """An SVG file, `svg`, and how a page shows it: `source`, for an image."""

    svg = b""

    @property
    def source(self) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@contextmanager
def _axes(figure: Figure, x: str, y: str, *, height: float = _SIZE[1]) -> "Iterator[Axes]":
    """Axes to draw on; at the end `figure` holds the SVG."""
    import matplotlib
    from matplotlib.figure import Figure as Sheet  # without pyplot: no state that is shared, and no display

    with matplotlib.rc_context(_SETTINGS):
        sheet = Sheet(figsize=(_SIZE[0], height), layout="constrained")
        axes = sheet.add_subplot(xlabel=x, ylabel=y)
        yield axes
        buffer = io.StringIO()
        sheet.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    head, svg, body = buffer.getvalue().partition("<svg ")
    opening, end, rest = body.partition(">")
    figure.svg = f"{head}{svg}{opening}{end}{_STYLE}{rest.replace(_INK, 'var(--ink)')}".encode()


def curves(
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    log: bool = False,
    level: tuple[float, str] | None = None,
    ticks: Sequence[str] = (),
) -> Figure:
    """Lines by name through their points, with a broken one at a `level` that has a name.

    With `log` the y axis is logarithmic, which its label says, and points that are not above 0 are left out. `ticks`
    name x = 0, 1, ...
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    found = Figure()
    with _axes(found, x, f"{y} (log scale)" if log else y) as axes:
        for (name, points), colour in zip(series.items(), COLOURS * len(series), strict=False):
            shown = [point for point in points if not log or point[1] > 0]
            few = "o" if len(shown) < 25 else ""
            axes.plot(
                *zip(*shown, strict=True), color=colour, marker=few, ms=3.5, lw=1.6, label=name
            ) if shown else None
        if level is not None:
            axes.axhline(level[0], color=_INK, ls="--", lw=1, label=level[1])
        if log:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator() if high > 20 * low else MaxNLocator(6))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="best")
    return found


def histogram(values: Sequence[float], edges: Sequence[float], *, x: str, y: str) -> Figure:
    """One bar per value, between the edges, one more than there are values."""
    found = Figure()
    with _axes(found, x, y, height=2.1) as axes:
        axes.stairs(values, edges, fill=True, color=COLOURS[0])
        axes.set_ylim(0, max([*values, 0]) * 1.05 or 1)
    return found


def footprints(areas: Mapping[str, Sequence[Ring]], names: Mapping[str, tuple[float, float]]) -> Figure:
    """Outlines of ground in longitude and latitude by what they are, the first in front, and names at their places."""
    found = Figure()
    with _axes(found, "longitude, degrees east", "latitude, degrees north", height=3.6) as axes:
        for place, (kind, rings) in reversed(list(enumerate(areas.items()))):
            for number, ring in enumerate(rings):
                lon, lat = zip(*(point[:2] for point in ring), strict=True)
                label = f"{kind} ({len(rings)})" if not number else None
                axes.fill(lon, lat, facecolor=COLOURS[place] + "30", edgecolor=COLOURS[place], lw=1.2, label=label)
        if axes.patches:
            low, high = axes.get_ylim()
            axes.set_aspect(1 / max(_cosine((low + high) / 2), 0.05), adjustable="datalim")
            axes.locator_params("x", nbins=5)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, reverse=True)
        _write(axes, names)
    return found


def _write(axes: "Axes", names: Mapping[str, tuple[float, float]]) -> None:
    """Names at their places, from north to south; one that would touch another moves up or down by lines."""
    # From here on it is known where a place lies on the sheet.
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    covered: list[Bbox] = []
    for name, place in sorted(names.items(), key=lambda each: -each[1][1]):
        written = axes.annotate(name, place, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=8)
        written.set_in_layout(False)
        for line in sorted(range(-len(names), len(names) + 1), key=abs):
            written.xyann = (0, 7 + line * _LINE)
            box = written.get_window_extent().expanded(1.1, 1)
            if not any(box.overlaps(other) for other in covered):
                break
        covered.append(box)


def _cosine(degrees: float) -> float:
    from math import cos, radians

    return cos(radians(degrees))
