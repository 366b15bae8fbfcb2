"""The report of a run: one page with the scores, the pictures, the training curve, the data and the configuration."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cloudjob import __version__
from cloudjob.pages import figures
from cloudjob.patches import stats

PICTURES = 24  # restored scenes or pairs that are shown at most
_SPLITS = ("test", "val", "train", "unknown")  # those held out come first
_HELD_OUT = {
    "test": "tiles that no triplet of the training came from",
    "unknown": "the network is from elsewhere, and what it was trained on is not known here",
}
_MEASURES = {"ssim": ("SSIM", ".4f"), "mae": ("MAE", ".4f"), "high_pass_ratio": ("texture", ".2f")}
_VALIDATION = {"loss": ".4f", "cloud_psnr": ".2f", "cloud_ssim": ".4f", "cloud_mae": ".4f", "all_psnr": ".2f"}
_LEVELS = ("least noise", "middle", "most noise")
_EXCHANGED = ("cloudy", "mask", "reference")
_STYLE = (
    "body{font:15px/1.5 system-ui;margin:2em auto;max-width:1100px;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%}figure{margin:1em 0}figcaption{color:#555}pre{background:#f5f5f5;padding:1em;overflow:auto}"
    ".ours{font-weight:bold}"
)


@dataclass(frozen=True)
class Run:
    """What a run came to, as its stages wrote it down."""

    summary: dict  # evaluation/summary.json
    scores: list[dict]  # evaluation/scores.jsonl
    pictures: Path  # the folder of the pictures of the evaluation
    metrics: list[dict]  # train/metrics.jsonl; empty where there is none, as the next two
    validation: list[dict]  # train/validation.jsonl
    checks: list[dict]  # train/checks.jsonl
    index: dict | None  # shards/index.json; None where there are no shards, empty where it cannot be read
    data: dict | None  # what the shards hold, of `patches.stats.collect`
    examples: bytes | None  # some triplets as a PNG, of `patches.stats.picture`
    configuration: str  # YAML
    labels: Sequence[dict] = ()  # product, share, changes (see `labels.Label`) and picture of masks corrected by hand


def page(run: Run) -> str:
    """The whole page as HTML; it opens from disk and needs no other file."""
    summary = run.summary
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>cloudjob report</title><style>{_STYLE}</style>",
        f"<h1>{_title(summary)}</h1>",
        _headline(summary),
        _score_table(summary),
        f"<p>{escape(summary['definitions'])}</p><h2>Cloudy, restored, truth (or the clear date)</h2>",
        *_pictures(run.scores, run.pictures, of=summary.get("of", "scenes")),
        "<h2>Training</h2>",
        _training(run.metrics),
        _validation(run.validation),
        _checks(run.checks),
        *_shards(run),
        *_labels(run.labels),
        f"<h2>Configuration</h2><pre>{escape(run.configuration)}</pre>",
        f"<p>cloudjob {__version__}. Contains modified Copernicus Sentinel data.</p></html>",
    ]
    return "\n".join(parts)


def _headline(summary: dict) -> str:
    split = summary["headline_split"]
    held_out = _HELD_OUT.get(split, "training tiles: nothing is held out")
    seams = ""
    if found := summary.get("seam_index"):
        seams = (
            f" Steps across the edges of tiles over those elsewhere in clouds: <b>{found['ours']:.2f}</b>; "
            f"{found['truth']:.2f} in the truth."
        )
    missing = summary.get("lacking", [])
    lacking = f"Not scored, for they are not made: {escape(', '.join(missing))}. " if missing else ""
    said = summary["verdict"]
    return (
        f"<p><b>{escape(said[0].upper() + said[1:])}.</b></p>"
        f"<p>Scores on the split <b>{escape(split)}</b> ({held_out}), {summary['scenes'].get(split, 0)} scenes. "
        f"{lacking}Clear pixels changed by the restoration: <b>{summary['changed_clear_pixels']}</b>.{seams}</p>"
    )


def _title(summary: dict) -> str:
    """What the run may claim."""
    above = summary["best_fill"]["above_ours"]
    if above is None:
        return "Clouds removed, not compared"
    return "Clouds removed" if above < 0 else "Clouds removed no better than without learning"


def _score_table(summary: dict) -> str:
    """One row per method: PSNR by stratum, and more measures of the stratum to judge by."""
    scores, on = summary["scores"][summary["headline_split"]], summary["headline"]
    methods, strata = summary["methods"], summary["strata"]
    heads = "".join(f"<th title='{escape(text, quote=True)}'>{name}" for name, text in strata.items())
    heads += "".join(f"<th>{name}" for name, _ in _MEASURES.values())
    out = [f"<table><tr><th rowspan=2>method<th colspan={len(strata)}>PSNR dB on pixels of<th colspan=3>{on}"]
    out.append(f"<tr>{heads}")
    for method, found in scores.items():
        cells = [_number(found.get(name, {}).get("psnr"), ".2f") for name in strata]
        cells += [_number(found.get(on, {}).get(key), form) for key, (_, form) in _MEASURES.items()]
        name, title = escape(method), escape(methods.get(method, method))
        out.append(f"<tr class='{name}'><td title='{title}'>{name}" + "".join(f"<td>{cell}" for cell in cells))
    notes = [f"<b>{escape(name)}</b>: {escape(text)}" for name, text in methods.items() if name in scores]
    notes.append("<b>texture</b>: high-pass standard deviation over that of the truth; above 1 noise, below 1 blur")
    return "".join(out) + f"</table><ul>{''.join(f'<li>{note}' for note in notes)}</ul>"


def _pictures(rows: Iterable[dict], folder: Path, *, of: str) -> list[str]:
    """One picture per restored scene, or per pair where the evaluation was of triplets, with its score."""
    key = {"scenes": "product", "triplets": "pair"}[of]
    found: dict[str, list[dict]] = {}
    for row in rows:
        if row["method"] == "ours" and row["on"] == "cloud":
            found.setdefault(row[key], []).append(row)
    ordered = sorted(found.items(), key=lambda item: (_SPLITS.index(item[1][0]["split"]), item[0]))
    out = []
    for name, own in ordered[:PICTURES]:
        known = [row["psnr"] for row in own if row["psnr"] is not None]
        score = f"{sum(known) / len(known):.2f} dB on cloud pixels" if known else "not scored"
        score += f" (mean of {len(own)} triplets)" if len(own) > 1 else ""
        caption = f"{name} ({own[0]['split']}): {score}; truth: {own[0]['truth']}"
        png = (folder / f"{name}.png").read_bytes()
        out.append(figures.picture(png, alt="cloudy, restored, truth", caption=caption))
    return out


def _training(rows: list[dict]) -> str:
    """The loss over the samples seen, the speed, and what the training used."""
    points = [(row["seen"], row["loss"]) for row in rows if row["loss"] > 0]
    if len(points) < 2:
        return "<p>Too few lines of metrics for a curve.</p>"
    speed = sorted(row["samples_per_s"] for row in rows)[len(rows) // 2]
    last = rows[-1]
    text = f"Loss by samples seen; {speed:.1f} samples per second (median), last loss {last['loss']:.4f}."
    curve = figures.curve(points, label="training loss", unit="samples")
    return f"{curve}<p>{text}</p>{_energy(last)}"


def _energy(row: dict) -> str:
    """What the training took, of all its sessions; nothing of a training that did not count it."""
    if "energy_kwh" not in row:
        return ""
    if row["energy_kwh"] is None:
        return f"<p>In {row['seconds'] / 3600:.2f} h; its energy was not measured.</p>"
    used = f"{row['energy_kwh']:.3g} kWh ({escape(row['energy'])}), {row['co2_g']:.3g} g CO2"
    return f"<p>{used}, in {row['seconds'] / 3600:.2f} h.</p>"


def _validation(rows: list[dict]) -> str:
    """The scores of the same held-out triplets as the training went on."""
    if not rows:
        return ""
    heads = ["samples", *(name.replace("_", ", ") for name in _VALIDATION)]
    lines = [[row["seen"], *(_number(row.get(key), form) for key, form in _VALIDATION.items())] for row in rows]
    note = f"Validation: the same {rows[-1]['triplets']} held-out triplets each time, with the averaged weights."
    return f"{_table(heads, lines)}<p>{note}</p>"


def _checks(rows: list[dict]) -> str:
    """What the training found when it looked for reasons to fail."""
    if not rows:
        return ""
    heads = ["samples", *_LEVELS, *(f"x0, {level}" for level in _LEVELS), *_EXCHANGED]
    lines = []
    for row in rows:
        values = [*row["against_zero"], *row["x0_error"], *(row["against_shuffled"][name] for name in _EXCHANGED)]
        lines.append([row["seen"], *(_number(value, ".3f") for value in values)])
    said = "".join(f"<p><b>{escape(warning)}</b></p>" for warning in rows[-1]["warnings"])
    note = (
        "Held-out loss over that of an output of zero, by third of the noise levels; error (RMSE, in standard "
        "deviations of the training split) of the estimate of the ground at them; and loss over that with a condition "
        "of another sample in its place. 1 means that nothing is learned there, or that the condition is not looked at."
    )
    return f"{said}{_table(heads, lines)}<p>{note}</p>"


def _shards(run: Run) -> list[str]:
    """What the network learned from; nothing where that is not known."""
    if run.index == {}:
        return ["<h2>Data</h2><p>The index of the shards cannot be read.</p>"]
    if run.data is None or run.index is None or run.examples is None:
        return []
    examples = figures.picture(
        run.examples,
        alt="triplets: cloudy, mask, clear, reference",
        caption="Triplets from all shards: cloudy; the same with its mask (cloud magenta, shadow blue, cirrus "
        "orange, unknown green); clear; reference, black where it shows nothing.",
    )
    return ["<h2>Data</h2>", _data(run.data, run.index), examples]


def _data(found: dict, index: dict) -> str:
    """Counts by pair and histograms of the shards."""
    heads = ["pair", "split", "triplets", "cloud", "reference, days", "lowest R²", "shift, pixels"]
    lines = []
    for row in found["pairs"]:
        r2 = min((value for value in row["r2"] if value is not None), default=None)
        shift = "not measured" if row["shift"][0] is None else "{:+.2f}, {:+.2f}".format(*row["shift"])
        days = _number(row["reference_days"], "+.1f")
        cloud = f"{row['cloud']:.1%}"
        lines.append([row["pair"], row["split"], row["triplets"], cloud, days, _number(r2, ".3f"), shift])
    counts = ", ".join(f"{count} {escape(split)}" for split, count in index["counts"].items())
    shares = ", ".join(f"{escape(name)} {share:.1%}" for name, share in found["classes"].items())
    bars = [
        figures.histogram(values, stats.CLOUD_EDGES.tolist(), f"cloud fraction of a triplet, {split}")
        for split, values in found["cloud_fraction"].items()
    ]
    bars += [
        figures.histogram(values, stats.LIGHT_EDGES.tolist(), f"reflectance of the clear images, {band}")
        for band, values in found["reflectance"].items()
    ]
    return (
        f"<p>Triplets of {index['window']} pixels: {counts}. Pixels of their masks: {shares}.</p>"
        f"{_table(heads, lines)}<div>{''.join(bars)}</div>"
    )


def _labels(found: Sequence[dict]) -> list[str]:
    """Which pixels of which masks came from a hand; nothing where none did."""
    if not found:
        return []
    lines = [
        [each["product"], f"{each['share']:.2%}", ", ".join(f"{name} {n:,}" for name, n in each["changes"].items())]
        for each in found
    ]
    pictures = [
        figures.picture(
            each["picture"],
            alt="the product, and what was changed of its mask",
            caption=f"{each['product']}: the pixels whose class a person changed, in yellow.",
        )
        for each in found[:PICTURES]
    ]
    heads = ["product", "by hand", "pixels of its mask, from the class that was exported"]
    return ["<h2>Masks corrected by hand</h2>", _table(heads, lines), *pictures]


def _table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in line) for line in lines)
    return f"<table><tr>{''.join(f'<th>{escape(head)}' for head in heads)}{body}</table>"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
