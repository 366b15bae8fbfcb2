"""The report of a run: what came out, then every scene, the scores, the training, the data, and what made them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudjob import __version__
from cloudjob.pages import material
from cloudjob.pages.cases import Case, cases, extremes
from cloudjob.pages.figures import Figure, curves, histogram
from cloudjob.pages.look import render
from cloudjob.pages.pictures import CERTAIN, SPREAD, UNCERTAIN
from cloudjob.patches import stats
from cloudjob.pixels import CLOUD
from cloudjob.sentinel2.render import OUTLINES

_HELD_OUT = {
    "test": "tiles that no triplet of the training came from",
    "unknown": "the network is from elsewhere, and what it was trained on is not known here",
}
_MEASURES = {"ssim": ("SSIM", ".4f"), "mae": ("MAE", ".4f"), "high_pass_ratio": ("texture", ".2f")}
_VALIDATION = {"loss": ".4f", "cloud_psnr": ".2f", "cloud_ssim": ".4f", "cloud_mae": ".4f", "all_psnr": ".2f"}
_LEVELS = ("least noise", "middle", "most noise")
_EXCHANGED = ("cloudy", "mask", "reference")
_OCTAVES = ("2 to 4", "4 to 8", "8 to 16", "16 to 32")  # pixels, of `spectrum`
NOTHING = "–"  # a cell without a value
_PARTS = {
    "verdict": "Verdict",
    "scenes": "Scenes",
    "map": "Map",
    "scores": "Scores",
    "training": "Training",
    "data": "Data",
    "hands": "Masks by hand",
    "made": "Provenance",
}
_COMPARED = ("cloudy", "nearest_clear")  # beside ours and the best fill, in the spectrum


@dataclass(frozen=True)
class Run:
    """What a run came to, as its stages wrote it down. Pictures are what an <img> takes as its source."""

    name: str  # of the run folder
    summary: dict  # evaluation/summary.json
    scores: list[dict]  # evaluation/scores.jsonl
    scenes: Sequence[dict] = ()  # restored: product, pictures by kind (see `pictures.of_restored`), sha256, why not
    sheets: Mapping[str, str] = field(default_factory=dict)  # by item of evaluate: cloudy, restored, truth side by side
    metrics: Sequence[dict] = ()  # train/metrics.jsonl; empty where there is none, as the next three
    validation: Sequence[dict] = ()  # train/validation.jsonl
    checks: Sequence[dict] = ()  # train/checks.jsonl
    cards: Sequence[dict] = ()  # train/jobs.jsonl
    index: dict | None = None  # shards/index.json; None where there are no shards, empty where it cannot be read
    data: dict | None = None  # what the shards hold, of `patches.stats.collect`
    examples: str | None = None  # a picture of some triplets
    labels: Sequence[dict] = ()  # product, share, changes (see `labels.Label`) and picture of masks corrected by hand
    products: Sequence[dict] = ()  # scenes.jsonl
    candidates: Sequence[dict] = ()  # pairs.jsonl
    accepted: Sequence[dict] = ()  # those of them that were taken
    by_person: Sequence[tuple[str, int]] = ()  # what persons decided, and how often
    troubles: Sequence[dict] = ()  # stage, item, status ("failed", "left out") and message of what was not made
    history: Sequence[dict] = ()  # jobs/history.jsonl
    hashes: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of files by what they are
    commit: str | None = None
    grid_co2: float = 0.0  # g per kWh
    configuration: str = ""  # YAML


def page(run: Run) -> str:
    """The whole page as HTML; it opens from disk, and asks no network for anything."""
    given = _given(run)
    shown = {"scenes": "viewer", "map": "place", "data": "data", "hands": "labels"}
    parts = [
        (name, title)
        for name, title in _PARTS.items()
        if name not in shown or given[shown[name]] or (name == "data" and run.candidates)
    ]
    return render("report.html", parts=parts, **given)


def _given(run: Run) -> dict[str, Any]:
    """What the template is filled with."""
    every = cases(run.scores, run.summary)
    return {
        "run": run,
        "version": __version__,
        "title": _title(run.summary),
        "verdict": run.summary["verdict"],
        "held_out": _HELD_OUT.get(run.summary["headline_split"], "training tiles: nothing is held out"),
        "warnings": [*(run.checks[-1]["warnings"] if run.checks else ()), *_uncompiled(run.cards)],
        "failed": [row for row in run.troubles if row["status"] == "failed"],
        "left_out": [row for row in run.troubles if row["status"] != "failed"],
        "scale": {"low": CERTAIN, "high": UNCERTAIN, "end": SPREAD, "outline": OUTLINES[CLOUD][1]},
        "viewer": _viewer(run, every),
        "extremes": [(name, case, run.sheets[case.item]) for name, case in _shown(run, every).items()],
        "place": material.places(
            run.products,
            {scene["product"] for scene in run.scenes},
            {row[role] for row in run.accepted for role in ("clear", "reference") if row.get(role)},
        ),
        "scores": _scores(run.summary),
        "groups": _groups(run.summary),
        "spectrum": _spectrum(run.summary),
        "training": _training(run),
        "validation": _validation(run.validation),
        "checks": _checks(run.checks),
        "energy": _energy(run),
        "data": _data(run),
        "why_not": material.why_not(row for row in run.candidates if not row["accepted"]),
        "days": _days(run.accepted),
        "labels": _labels(run.labels),
        "commands": [_command(run, row) for row in run.history],
        "number": number,
    }


def number(value: float | None, form: str) -> str:
    """As a cell shows it."""
    return NOTHING if value is None else format(value, form)


def _title(summary: dict) -> str:
    """What the run may claim."""
    above = summary["best_fill"]["above_ours"]
    if above is None:
        return "Clouds removed, not compared"
    return "Clouds removed" if above < 0 else "Clouds removed no better than without learning"


def _shown(run: Run, every: Sequence[Case]) -> dict[str, Case]:
    return {name: case for name, case in extremes(every).items() if case.item in run.sheets}


# --- scenes ------------------------------------------------------------------------------------------------------
def _viewer(run: Run, every: Sequence[Case]) -> list[dict[str, Any]]:
    """A line for each restored scene, the worst first, with its pictures; of a run that restored none and scored
    triplets, for each pair."""
    if not run.scenes:
        return [
            _line(case.item, case) | {"pictures": {"sheet": run.sheets[case.item]}}
            for case in every
            if case.item in run.sheets
        ]
    known: dict[str, Case] = {case.product: case for case in reversed(every)}
    order = {product: place for place, product in enumerate(dict.fromkeys(case.product for case in every))}
    scenes = sorted(run.scenes, key=lambda scene: (order.get(scene["product"], len(order)), scene["product"]))
    return [
        _line(scene["product"], known.get(scene["product"]))
        | {"pictures": scene["pictures"], "why": scene.get("why", "")}
        for scene in scenes
    ]


def _line(name: str, case: Case | None) -> dict[str, Any]:
    """What is said of a scene."""
    line: dict[str, Any] = {
        "name": name,
        "split": "",
        "ours": None,
        "fill": None,
        "gain": None,
        "truth": "",
        "number": 1,
        "why": "",
    }
    if case is not None:
        line |= {"split": case.split, "ours": case.ours, "fill": case.fill, "gain": case.gain}
        line |= {"truth": case.truth, "number": case.number}
    return line


# --- scores ------------------------------------------------------------------------------------------------------
def _scores(summary: dict) -> dict[str, Any]:
    """The table: PSNR by stratum, more measures of the stratum to judge by, and what ours adds there, with intervals
    where they are known."""
    scores, on = summary["scores"][summary["headline_split"]], summary["headline"]
    gains = summary.get("differences", {}).get(on, {})
    texts = {
        title: {method: number(found.get(on, {}).get(key), form) for method, found in scores.items()}
        for key, (title, form) in _MEASURES.items()
    }
    texts["interval of PSNR"] = {
        name: _interval(each.get(on, {}).get("psnr_interval"), ".2f") for name, each in scores.items()
    }
    texts["ours above it, dB"] = {name: number(each.get("psnr"), "+.2f") for name, each in gains.items()}
    texts["interval"] = {name: _interval(each.get("interval"), "+.2f") for name, each in gains.items()}
    shown = {name: found for name, found in texts.items() if set(found.values()) - {NOTHING}}
    rows = []
    for method, found in scores.items():
        cells = [number(found.get(name, {}).get("psnr"), ".2f") for name in summary["strata"]]
        cells += [column.get(method, NOTHING) for column in shown.values()]
        rows.append((method, summary["methods"].get(method, method), cells))
    return {"strata": summary["strata"], "measures": list(shown), "methods": rows}


def _interval(ends: Sequence[float | None] | None, form: str) -> str:
    if ends is None or None in ends:
        return NOTHING
    return f"{number(ends[0], form)} to {number(ends[1], form)}"


def _groups(summary: dict) -> dict[str, Any] | None:
    """PSNR on cloud pixels by share of cloud and by elevation of the sun; None where that was not measured."""
    groups = {name: found for name, found in summary.get("groups", {}).items() if found}
    methods = [name for name in summary["scores"][summary["headline_split"]] if any(name in g for g in groups.values())]
    if not groups:
        return None
    counts = {name: max(row["triplets"] for row in found.values()) for name, found in groups.items()}
    rows = [
        (method, [number(found.get(method, {}).get("psnr"), ".2f") for found in groups.values()]) for method in methods
    ]
    return {"heads": [f"{name} ({count})" for name, count in counts.items()], "rows": rows}


def _spectrum(summary: dict) -> tuple[Figure, str] | None:
    """How much texture of each size there is, over that of the truth; None where it is not known."""
    scores, on = summary["scores"][summary["headline_split"]], summary["headline"]
    wanted = dict.fromkeys(("ours", summary["best_fill"]["method"], *_COMPARED))
    found = {
        name: [(place, value) for place, value in enumerate(scores[name][on]["spectrum"]) if value is not None]
        for name in wanted
        if "spectrum" in scores.get(name, {}).get(on, {})
    }
    if not any(found.values()):
        return None
    figure = curves(
        found,
        x="wavelength, pixels of 10 m",
        y="amplitude over the truth's, dB",
        level=(0.0, "the truth"),
        ticks=_OCTAVES,
    )
    said = "; ".join(f"{name} {', '.join(f'{value:+.1f}' for _, value in line)} dB" for name, line in found.items())
    return figure, said


# --- training ----------------------------------------------------------------------------------------------------
def _training(run: Run) -> dict[str, Any] | None:
    """Curves of loss, rate and held-out loss against an output of zero; None with fewer than two rows of metrics."""
    rows = run.metrics
    if len(rows) < 2:
        return None
    loss = [(row["seen"], row["loss"]) for row in rows]
    held = [(row["seen"], row["loss"]) for row in run.validation if row.get("loss") is not None]
    figures = [
        (
            curves({"training": loss, **({"held out": held} if held else {})}, x="samples seen", y="loss", log=True),
            f"Loss from {loss[0][1]:.4f} to {loss[-1][1]:.4f} over {loss[-1][0]:,} samples, on a logarithmic scale.",
        )
    ]
    if run.checks:
        thirds = {
            name: [(row["seen"], row["against_zero"][place]) for row in run.checks if row["against_zero"][place]]
            for place, name in enumerate(_LEVELS)
        }
        last = ", ".join(f"{name} {points[-1][1]:.2f}" for name, points in thirds.items() if points)
        y = "loss / that of zero"
        figures.append(
            (
                curves(thirds, x="samples seen", y=y, log=True, level=(1.0, "an output of zero")),
                f"Held-out loss over that of an output of zero, by third of the noise levels; at the end {last}. "
                "At 1 nothing is learned.",
            )
        )
    rates = [(row["seen"], row["lr"]) for row in rows if row.get("lr") is not None]
    if rates:
        top = max(rate for _, rate in rates)
        figures.append((curves({"rate": rates}, x="samples seen", y="learning rate"), f"Learning rate, up to {top:g}."))
    speed = sorted(row["samples_per_s"] for row in rows)[len(rows) // 2]
    return {"figures": figures, "speed": speed, "last": rows[-1]}


def _validation(rows: Sequence[dict]) -> dict[str, Any] | None:
    """The scores of the same held-out triplets as the training went on."""
    if not rows:
        return None
    heads = ["samples", *(name.replace("_", ", ") for name in _VALIDATION)]
    lines = [[f"{row['seen']:,}", *(number(row.get(key), form) for key, form in _VALIDATION.items())] for row in rows]
    return {"heads": heads, "rows": lines, "triplets": rows[-1]["triplets"]}


def _checks(rows: Sequence[dict]) -> dict[str, Any] | None:
    """What the training found when it looked for reasons to fail."""
    if not rows:
        return None
    heads = ["samples", *_LEVELS, *(f"x0, {level}" for level in _LEVELS), *_EXCHANGED]
    lines = []
    for row in rows:
        values = [*row["against_zero"], *row["x0_error"], *(row["against_shuffled"][name] for name in _EXCHANGED)]
        lines.append([f"{row['seen']:,}", *(number(value, ".3f") for value in values)])
    return {"heads": heads, "rows": lines}


def _uncompiled(cards: Sequence[dict]) -> list[str]:
    """Why steps that were to be compiled ran as they are, each reason once."""
    causes = dict.fromkeys(card["cause"] for card in cards if card["event"] == "not compiled")
    return [f"The step was not compiled, so it was slower and took more memory: {cause}" for cause in causes]


def _energy(run: Run) -> dict[str, Any] | None:
    """What the training took, of all its sessions; None of a training that did not count it."""
    last = run.metrics[-1] if run.metrics else {}
    if "energy_kwh" not in last:
        return None
    devices = sorted({device for card in run.cards for device in card.get("devices", [])})
    return last | {"hours": last["seconds"] / 3600, "devices": devices, "grid": run.grid_co2}


# --- data --------------------------------------------------------------------------------------------------------
def _data(run: Run) -> dict[str, Any] | None:
    """Counts by pair and histograms of the shards; None where they are not known."""
    if run.data is None or not run.index:
        return None
    heads = ["pair", "split", "triplets", "cloud", "reference, days", "lowest R²", "shift, pixels"]
    lines = []
    for row in run.data["pairs"]:
        r2 = min((value for value in row["r2"] if value is not None), default=None)
        shift = "not measured" if row["shift"][0] is None else "{:+.2f}, {:+.2f}".format(*row["shift"])
        days = number(row["reference_days"], "+.1f")
        lines.append(
            [row["pair"], row["split"], row["triplets"], f"{row['cloud']:.1%}", days, number(r2, ".3f"), shift]
        )
    figures = [
        _bars(values, stats.CLOUD_EDGES.tolist(), f"share of a triplet that is cloud, {split}", "triplets")
        for split, values in run.data["cloud_fraction"].items()
    ]
    figures += [
        _bars(values, stats.LIGHT_EDGES.tolist(), f"reflectance of clear images, {band}", "share of pixels")
        for band, values in run.data["reflectance"].items()
    ]
    return {"heads": heads, "rows": lines, "figures": figures, "classes": run.data["classes"]}


def _bars(values: Sequence[float], edges: Sequence[float], x: str, y: str) -> tuple[Figure, str]:
    """A histogram and what it shows in words."""
    top = max(range(len(values)), key=lambda place: values[place])
    said = f"Histogram: {x}; most between {edges[top]:.2g} and {edges[top + 1]:.2g}."
    return histogram(values, edges, x=x, y=y), said


def _days(rows: Iterable[dict]) -> tuple[Figure, str] | None:
    """How far the dates of the pairs that were taken lie apart; None where nothing was taken."""
    import numpy as np

    days = [row["days"] for row in rows if row.get("days") is not None]
    if not days:
        return None
    counts, edges = np.histogram(days, bins=min(20, len(set(days)) + 1))
    return _bars(counts.tolist(), edges.tolist(), "days from the cloudy to the clear date", "pairs")


def _labels(found: Sequence[dict]) -> list[dict[str, Any]]:
    """Which pixels of which masks came from a hand."""
    return [
        each
        | {"share": f"{each['share']:.2%}", "said": ", ".join(f"{name} {n:,}" for name, n in each["changes"].items())}
        for each in found
    ]


# --- provenance --------------------------------------------------------------------------------------------------
def _command(run: Run, row: dict) -> dict[str, Any]:
    """A line of the history, with the command as it would be typed beside the run folder."""
    from shlex import join

    settings = [part for override in row["overrides"] for part in ("--set", override)]
    return row | {"typed": join(["cloudjob", row["command"], run.name, *settings])}
