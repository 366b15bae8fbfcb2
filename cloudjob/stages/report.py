"""report: one self-contained page with the scores, the pictures, the training curve and what made them."""

import base64
import html
import json

from cloudjob import __version__
from cloudjob.config.models import Config
from cloudjob.errors import InputError
from cloudjob.run import records
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import digest, read_jsonl, write_text

STAGE = "report"
_EXCHANGED = ("cloudy", "mask", "reference")


def items(config: Config, folder: RunFolder) -> list[Item]:
    if not folder.evaluation.exists():
        raise InputError(f"{folder.evaluation} is not there yet. Run: cloudjob evaluate {folder.root}")
    scores = json.loads(folder.evaluation.read_text())
    return [Item(STAGE, "run", {}, {"evaluation": digest(scores), "train": records.output_digest(folder, "train", "run")})]


def run(config: Config, folder: RunFolder) -> Summary:
    def make(item: Item):
        write_text(folder.report, _page(config, folder))
        return [folder.report], None

    summary = records.work(folder, STAGE, items(config, folder), make)
    summary.output = f"report: {folder.report}"
    return summary


def _page(config: Config, folder: RunFolder) -> str:
    from cloudjob.config.source import dump

    scores = json.loads(folder.evaluation.read_text())
    rows = read_jsonl(folder.scores)
    split = scores["headline_split"]
    held_out = (
        "tiles that no triplet of the training came from" if split == "test" else "training tiles: nothing is held out"
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>cloudjob report</title>",
        "<style>body{font:15px/1.5 system-ui;margin:2em auto;max-width:1100px;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}"
        "img{max-width:100%}figure{margin:1em 0}figcaption{color:#555}pre{background:#f5f5f5;padding:1em;overflow:auto}"
        ".ours{font-weight:bold}</style><h1>Clouds removed</h1>",
        f"<p>Scores on the split <b>{split}</b> ({held_out}), {scores['scenes'].get(split, 0)} scenes. "
        f"Clear pixels changed by the restoration: <b>{scores['changed_clear_pixels']}</b>. {_seams(scores)}</p>",
        _scores(scores["scores"][split], scores["methods"]),
        f"<p>{html.escape(scores['definitions'])}</p><h2>Cloudy, restored, truth (or the clear date)</h2>",
        *_pictures(folder, rows),
        "<h2>Training</h2>",
        _curve(read_jsonl(folder.metrics) if folder.metrics.exists() else []),
        _validation(read_jsonl(folder.validation) if folder.validation.exists() else []),
        _checks(read_jsonl(folder.checks) if folder.checks.exists() else []),
        "<h2>Data</h2>",
        _data(config, folder),
        f"<h2>Configuration</h2><pre>{html.escape(dump(config))}</pre>",
        f"<p>cloudjob {__version__}. Contains modified Copernicus Sentinel data.</p></html>",
    ]
    return "\n".join(parts)


def _seams(scores: dict) -> str:
    if not (seams := scores.get("seam_index")):
        return ""
    return (
        f"Steps across the edges of tiles over those elsewhere in clouds: <b>{seams['ours']:.2f}</b>; "
        f"{seams['truth']:.2f} in the truth."
    )


def _scores(pooled: dict, methods: dict) -> str:
    keys = {"psnr": ("PSNR dB", ".2f"), "ssim": ("SSIM", ".4f"), "mae": ("MAE", ".4f")}
    out = [
        "<table><tr><th rowspan=2>method",
        *[f"<th colspan=3>{on} pixels" for on in ("cloud", "clear", "all")],
        "<th>",
    ]
    out.append("<tr>" + "".join(f"<th>{name}" for name, _ in keys.values()) * 3 + "<th>texture (cloud)")
    for method, on in pooled.items():
        scores = [on.get(pixels, {}) for pixels in ("cloud", "clear", "all")]
        cells = [_cell(score.get(key), form) for score in scores for key, (_, form) in keys.items()]
        cells.append(_cell(scores[0].get("high_pass_ratio"), ".2f"))
        title = html.escape(methods.get(method, method))
        out.append(f"<tr class={method}><td title='{title}'>{method}" + "".join(f"<td>{cell}" for cell in cells))
    notes = "".join(f"<li><b>{name}</b>: {html.escape(text)}" for name, text in methods.items() if name in pooled)
    texture = "<li><b>texture</b>: high-pass standard deviation over that of the truth; above 1 noise, below 1 blur"
    return "".join(out) + f"</table><ul>{notes}{texture}</ul>"


def _cell(value, form: str) -> str:
    return "-" if value is None else format(value, form)


def _pictures(folder: RunFolder, rows: list[dict]) -> list[str]:
    order, by_product = {"test": 0, "val": 1, "train": 2}, {}
    for row in rows:
        if row["method"] == "ours" and row["on"] == "cloud":
            by_product.setdefault(row["product"], []).append(row)
    out = []
    for name, own in sorted(by_product.items(), key=lambda pair: (order[pair[1][0]["split"]], pair[0]))[:24]:
        data = base64.b64encode((folder.evaluation.parent / f"{name}.png").read_bytes()).decode()
        known = [row["psnr"] for row in own if row["psnr"] is not None]
        psnr = f"{sum(known) / len(known):.2f} dB on cloud pixels" if known else "not scored"
        psnr += f" (mean of {len(own)} triplets)" if len(own) > 1 else ""
        out.append(
            f"<figure><img alt='cloudy, restored, truth' src='data:image/png;base64,{data}'>"
            f"<figcaption>{name} ({own[0]['split']}): {psnr}; truth: {own[0]['truth']}</figcaption></figure>"
        )
    return out


def _checks(rows: list[dict]) -> str:
    """What the training found when it looked for reasons to fail (see diffusion.diagnosis)."""
    if not rows:
        return ""
    levels = ("least noise", "middle", "most noise")
    names = ("samples", *levels, *(f"x0, {level}" for level in levels), *_EXCHANGED)
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for row in rows:
        values = [*row["against_zero"], *row["x0_error"], *(row["against_shuffled"][name] for name in _EXCHANGED)]
        cells = "".join(f"<td>{_cell(value, '.3f')}</td>" for value in values)
        lines.append(f"<tr><td>{row['seen']}</td>{cells}</tr>")
    said = "".join(f"<p><b>{html.escape(warning)}</b></p>" for warning in rows[-1]["warnings"])
    note = (
        "Held-out loss over that of an output of zero, by third of the noise levels; error (RMSE, in standard "
        "deviations of the training split) of the estimate of the ground at them; and loss over that with a condition "
        "of another sample in its place. 1 means that nothing is learned there, or that the condition is not looked at."
    )
    return f"{said}<table><tr>{head}</tr>{''.join(lines)}</table><p>{note}</p>"


def _curve(rows: list[dict]) -> str:
    """The loss over the samples seen as an inline SVG, logarithmic."""
    import math

    points = [(row["seen"], math.log10(row["loss"])) for row in rows if row["loss"] > 0]
    if len(points) < 2:
        return "<p>Too few lines of metrics for a curve.</p>"
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(max(ys), min(ys) + 1e-6)
    at = [f"{60 + 900 * x / xs[-1]:.1f},{20 + 200 * (high - y) / (high - low):.1f}" for x, y in points]
    speed = sorted(row["samples_per_s"] for row in rows)[len(rows) // 2]
    return (
        "<svg viewBox='0 0 1000 260' role=img aria-label='training loss'>"
        f"<polyline fill=none stroke='#06c' stroke-width=2 points='{' '.join(at)}'/>"
        f"<text x=0 y=25>{10**high:.3g}</text><text x=0 y=222>{10**low:.3g}</text>"
        f"<text x=60 y=250>0</text><text x=880 y=250>{xs[-1]} samples</text></svg>"
        f"<p>Loss by samples seen; {speed:.1f} samples a second (median), last loss {rows[-1]['loss']:.4f}.</p>"
        f"{_energy(rows[-1])}"
    )


def _energy(row: dict) -> str:
    """What the training took, of all its sessions; nothing of a training that did not count it."""
    if "energy_kwh" not in row:
        return ""
    used = f"{row['energy_kwh']:.3g} kWh ({row['energy']}), {row['co2_g']:.3g} g CO2"
    return f"<p>{used}, in {row['seconds'] / 3600:.2f} h.</p>"


def _validation(rows: list[dict]) -> str:
    """The scores of the same held-out triplets as the training went on."""
    keys = {"loss": ".4f", "cloud_psnr": ".2f", "cloud_ssim": ".4f", "cloud_mae": ".4f", "all_psnr": ".2f"}
    if not rows:
        return ""
    head = "".join(f"<th>{name.replace('_', ', ')}" for name in keys)
    lines = ["".join(f"<td>{_cell(row.get(key), form)}" for key, form in keys.items()) for row in rows]
    body = "".join(f"<tr><td>{row['seen']}{line}" for row, line in zip(rows, lines, strict=True))
    return (
        f"<table><tr><th>samples{head}{body}</table>"
        f"<p>Validation: the same {rows[-1]['triplets']} held-out triplets each time, with the averaged weights.</p>"
    )


def _data(config: Config, folder: RunFolder) -> str:
    """Counts by pair, histograms, and triplets to look at."""
    from cloudjob.patches import stats

    shards, index = folder.shards, folder.index()
    found = stats.collect(shards, index)
    head = "<tr><th>pair<th>split<th>triplets<th>cloud<th>reference, days<th>lowest R²<th>shift, pixels"
    rows = []
    for row in found["pairs"]:
        r2 = min((value for value in row["r2"] if value is not None), default=None)
        shift = "not measured" if row["shift"][0] is None else "{:+.2f}, {:+.2f}".format(*row["shift"])
        cells = [row["split"], row["triplets"], f"{row['cloud']:.1%}", _cell(row["reference_days"], "+.1f")]
        rows.append(f"<tr><td>{row['pair']}" + "".join(f"<td>{cell}" for cell in [*cells, _cell(r2, ".3f"), shift]))
    counts = ", ".join(f"{count} {split}" for split, count in index["counts"].items())
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found["classes"].items())
    bars = [
        _bars(values, stats.CLOUD_EDGES, f"cloud fraction of a triplet, {split}")
        for split, values in found["cloud_fraction"].items()
    ]
    bars += [
        _bars(values, stats.LIGHT_EDGES, f"reflectance of the clear images, {band}")
        for band, values in found["reflectance"].items()
    ]
    examples = stats.picture(shards, index, number=6, gain=config.review.gain)
    data = base64.b64encode(examples).decode()
    return (
        f"<p>Triplets of {index['window']} pixels: {counts}. Pixels of their masks: {shares}.</p>"
        f"<table>{head}{''.join(rows)}</table><div>{''.join(bars)}</div>"
        "<figure><img alt='triplets: cloudy, mask, clear, reference' "
        f"src='data:image/png;base64,{data}'><figcaption>Triplets from all shards: cloudy; the same with its mask "
        "(cloud magenta, shadow blue, cirrus orange, unknown green); clear; reference, black where it shows nothing."
        "</figure>"
    )


def _bars(values: list[float], edges, title: str) -> str:
    """A histogram as an inline SVG."""
    high, width = max(max(values), 1e-9), 300 / len(values)
    bars = "".join(
        f"<rect x={10 + i * width:.1f} y={100 - 80 * value / high:.1f} width={width - 1:.1f} "
        f"height={80 * value / high:.1f} fill='#06c'/>"
        for i, value in enumerate(values)
    )
    return (
        f"<svg viewBox='0 0 320 125' width=320 role=img aria-label='{title}'>"
        f"<text x=10 y=12 font-size=12>{title}</text>{bars}<text x=10 y=116 font-size=11>{edges[0]:g}</text>"
        f"<text x=310 y=116 font-size=11 text-anchor=end>{edges[-1]:g}</text></svg>"
    )
