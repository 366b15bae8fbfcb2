"""What the finished variants came to: one document (JSON), one table (Markdown), one figure."""

from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.comparison import runs
from cloudjob.comparison.variants import Comparison
from cloudjob.files import atomic, read_json, write_json, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BESIDE = ("veil", "shadow", "rim", "cloud", "clear")  # strata beside the one to judge by
COLUMNS = ("variant", "method", "PSNR dB", "95 %", "SSIM", "MAE", "texture", *_BESIDE)
TRAINING = ("samples", "training s", "parameters")
_NEAR = 6  # dB beyond the variants within which a baseline has its line in the figure; else it is only named


def write(comparison: Comparison, folder: RunFolder) -> dict:
    """Writes comparison.json, .md and .png over the finished variants, and returns the document."""
    document = gather(comparison, folder)
    write_json(folder.root / "comparison.json", document)
    write_text(folder.root / "comparison.md", table(document))
    if _points(document):
        with atomic(folder.root / "comparison.png") as temporary:
            figure(document, temporary)
    return document


def gather(comparison: Comparison, folder: RunFolder) -> dict:
    """{"definitions", "variants": those that are finished, "baselines", "missing": name -> why}.

    Scores are of the split that each run puts first: method -> pixels -> measure -> value.
    """
    variants, missing = [], {}
    baselines: list[dict] = []
    definitions = ""
    for name, item in runs.items(comparison, folder).items():
        if why := records.why(folder, item):
            missing[name] = why
            continue
        summary = read_json(RunFolder(folder.root / name).evaluation)
        scores, definitions = summary["scores"][summary["headline_split"]], summary["definitions"]
        variant = comparison.variants[name]
        variants.append(
            {
                "name": name,
                "from": variant.source,
                "overrides": variant.overrides,
                "split": summary["headline_split"],
                "training": records.results(folder, [item])[0],
                "scores": {method: pixels for method, pixels in scores.items() if method.startswith("ours")},
            }
        )
        others = {method: pixels for method, pixels in scores.items() if not method.startswith("ours")}
        _add_baselines(baselines, name, others)
    return {"definitions": definitions, "variants": variants, "baselines": baselines, "missing": missing}


def _add_baselines(baselines: list[dict], name: str, scores: dict) -> None:
    """Adds the baselines of a variant, or its name to those that read the same in the table: of the same data."""
    shown = {method: _cells(pixels) for method, pixels in scores.items()}
    for group in baselines:
        if {method: _cells(pixels) for method, pixels in group["scores"].items()} == shown:
            group["variants"].append(name)
            return
    baselines.append({"variants": [name], "scores": scores})


def _cells(pixels: dict) -> list[str]:
    """The measures of a method as the table shows them."""
    found = _judged(pixels)
    low, high = found.get("psnr_interval") or (None, None)
    return [
        _number(found.get("psnr"), ".2f"),
        "-" if low is None else f"{low:.2f} to {high:.2f}",
        _number(found.get("ssim"), ".4f"),
        _number(found.get("mae"), ".4f"),
        _number(found.get("high_pass_ratio"), ".2f"),
        *(_number(pixels.get(on, {}).get("psnr"), ".2f") for on in _BESIDE),
    ]


def _judged(pixels: dict) -> dict:
    """The scores of a method on thick cloud; on all cloud pixels where none is thick."""
    return pixels.get("thick") or pixels.get("cloud") or {}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(document: dict) -> str:
    """The document as Markdown: one row per variant and method, then the baselines, once for all that share them."""
    rows = []
    for variant in document["variants"]:
        training = [f"{variant['training'][key]:,.0f}" for key in ("samples", "seconds", "parameters")]
        for method, pixels in variant["scores"].items():
            rows.append([variant["name"], method, *_cells(pixels), *training])
    groups = sorted(document["baselines"], key=lambda group: -len(group["variants"]))
    for group in groups:
        whose = "baseline" if group is groups[0] else f"baseline of {', '.join(group['variants'])}"
        rows += [[whose, method, *_cells(pixels), "", "", ""] for method, pixels in group["scores"].items()]
    heads = (*COLUMNS, *TRAINING)
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows)]
    splits = ", ".join(f"{variant['split']} ({variant['name']})" for variant in document["variants"])
    if len({variant["split"] for variant in document["variants"]}) == 1:
        splits = document["variants"][0]["split"]
    told = f"All measures are of thick cloud, but for the PSNR in dB on {', '.join(_BESIDE)}."
    lines += ["", f"Split: {splits or 'none'}. {told} {document['definitions']}"]
    lines += [
        "95 %: bootstrap interval of the PSNR. texture: high-pass standard deviation over that of the truth; above 1 "
        "noise, below 1 blur."
    ]
    lines += [f"Missing: {name} ({why})." for name, why in document["missing"].items()]
    return "\n".join(lines) + "\n"


def figure(document: dict, path: Path) -> None:
    """PSNR on thick cloud of every variant and method, with its interval, as a PNG of 1200 pixels; baselines are lines
    across the variants that share them."""
    from matplotlib.figure import Figure

    points = _points(document)
    canvas = Figure(figsize=(12, 2 + 0.5 * len(points)), dpi=100, layout="constrained")
    axes = canvas.subplots()
    low = min(low for *_, (low, _, _) in points)
    high = max(high for *_, (_, _, high) in points)
    for row, (*_, (left, psnr, right)) in enumerate(points):
        axes.plot([left, right], [row, row], color="black", linewidth=2, zorder=3)
        axes.plot(psnr, row, "o", color="black", markersize=8, zorder=3)
        text = axes.annotate(f"{psnr:.2f}", (psnr, row), (0, 8), textcoords="offset points", ha="center", zorder=3)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    _lines(axes, document, [name for name, *_ in points], low - _NEAR, high + _NEAR)
    labels = [name if method == "ours" else f"{name}: {method}" for name, method, _ in points]
    axes.set_yticks(range(len(points)), labels)
    axes.set_ylim(len(points) - 0.5, -0.8)
    axes.set_xlabel("PSNR on thick cloud, dB, with its 95 % bootstrap interval; more is better")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside lower center", ncols=3, frameon=False)
    canvas.savefig(path, format="png")


def _points(document: dict) -> list[tuple[str, str, tuple[float, float, float]]]:
    """(variant, method, (lower end, PSNR, upper end)) on thick cloud; without an interval the ends are the PSNR."""
    points = []
    for variant in document["variants"]:
        for method, pixels in variant["scores"].items():
            psnr = _judged(pixels).get("psnr")
            if psnr is not None:
                low, high = _judged(pixels).get("psnr_interval") or (None, None)
                points.append((variant["name"], method, (psnr if low is None else low, psnr, high or psnr)))
    return points


def _lines(axes: "Axes", document: dict, names: list[str], low: float, high: float) -> None:
    """Each baseline as a line across the rows of its variants, or in the legend alone where it lies far off."""
    groups = document["baselines"]
    methods = dict.fromkeys(method for group in groups for method in group["scores"])
    for number, method in enumerate(methods):
        colour, told = f"C{number}", []
        for group in groups:
            psnr = _judged(group["scores"].get(method, {})).get("psnr")
            if psnr is None:
                continue
            near = low <= psnr <= high
            told.append(f"{psnr:.2f}" + ("" if near else " (off the axis)"))
            rows = [row for row, name in enumerate(names) if near and name in group["variants"]]
            axes.vlines([psnr] * len(rows), [row - 0.5 for row in rows], [row + 0.5 for row in rows], colour, "--")
        axes.plot([], [], color=colour, linestyle="--", label=f"{method} {', '.join(told)}")
