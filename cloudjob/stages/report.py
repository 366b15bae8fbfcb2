"""report: one page with what came out, every scene, the scores, the training, the data and what made them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cloudjob.config.models import Config
from cloudjob.errors import DamagedInputError, InterruptedJob, ItemError
from cloudjob.files import digest, file_sha256, names_in, split_jsonl, write_text
from cloudjob.run import decisions, labels, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import LEFT_OUT, Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.pages.gallery import Gallery

STAGE = "report"
_LOOK = {"look": 2}  # a page of an earlier look is made again
_STAGES = ("search", "preview", "pair", "review", "download", "shard", "train", "infer", "evaluate")
_EXAMPLE_BYTES = 400_000  # of a picture that is not of a scene


def items(config: Config, folder: RunFolder) -> list[Item]:
    """The page; InputError while nothing is scored."""
    scores = folder.document(folder.evaluation, stage="evaluate")
    inputs = {"evaluation": digest(scores), "train": records.output_digest(folder, "train", "run")}
    inputs["scenes"] = digest({name: records.output_digest(folder, "infer", name) for name in _restored(folder)})
    return [Item(STAGE, "run", _LOOK, inputs | labels.digests(folder, _with_masks(folder)))]


def _restored(folder: RunFolder) -> list[str]:
    """The products of which a restored scene is recorded."""
    names = sorted(name.removesuffix(".json") for name in names_in(folder.records / "infer") if name.endswith(".json"))
    return [name for name in names if records.output_digest(folder, "infer", name)]


def _with_masks(folder: RunFolder) -> list[str]:
    """The products of the run whose masks were exported."""
    return sorted(path.stem for path in folder.labels.glob("*.tif") if folder.safe(path.stem).is_dir())


def run(config: Config, folder: RunFolder) -> Summary:
    """Makes report/index.html, and where there are many scenes report/pictures/."""
    from cloudjob.pages.gallery import Gallery

    def make(item: Item) -> Made:
        restored = _restored(folder)
        scores = folder.whole_rows(folder.scores, stage="evaluate")
        gallery = Gallery(folder.report.parent / "pictures", len(restored) or len({row["pair"] for row in scores}))
        page = _page(config, folder, gallery, scores, restored, labels.among(item.inputs, _with_masks(folder)))
        write_text(folder.report, page)
        gallery.sweep()
        return [folder.report, *gallery.paths], None

    summary = records.work(folder, STAGE, items(config, folder), make)
    summary.output = f"report: {folder.report}"
    return summary


def _page(
    config: Config,
    folder: RunFolder,
    gallery: "Gallery",
    scores: list[dict],
    restored: list[str],
    by_hand: Iterable[str],
) -> str:
    from cloudjob.config import source
    from cloudjob.hpc import machine
    from cloudjob.pages import material, report, review

    summary = folder.document(folder.evaluation, stage="evaluate")
    accepted = decisions.accepted_pairs(folder) if folder.decisions.exists() and folder.pairs.exists() else []
    return report.page(
        report.Run(
            name=folder.root.resolve().name,
            summary=summary,
            scores=scores,
            scenes=_scenes(config, folder, gallery, restored),
            sheets=_sheets(folder, gallery, _pictured(scores, summary, every=not restored)),
            metrics=folder.whole_rows(folder.metrics, stage="train"),
            validation=folder.whole_rows(folder.validation, stage="train"),
            checks=folder.whole_rows(folder.checks, stage="train"),
            cards=folder.whole_rows(folder.job_cards, stage="train"),
            labels=[found for name in by_hand for found in _label(config, folder, name)],
            products=folder.whole_rows(folder.scenes, stage="search"),
            candidates=folder.whole_rows(folder.pairs, stage="pair"),
            accepted=accepted,
            by_person=material.by_person(decisions.read(folder.decisions), review.RULE),
            troubles=_troubles(folder),
            history=split_jsonl(folder.history)[0] if folder.history.exists() else [],
            hashes=_hashes(config, folder),
            commit=machine.commit(),
            grid_co2=config.train.grid_co2,
            configuration=source.dump(config),
            **_shards(config, folder),
        )
    )


# --- pictures ----------------------------------------------------------------------------------------------------
def _scenes(config: Config, folder: RunFolder, gallery: "Gallery", restored: list[str]) -> list[dict]:
    """Each restored scene with its pictures, or why there are none."""
    from concurrent.futures import ThreadPoolExecutor

    from cloudjob.hpc import machine
    from cloudjob.pages import pictures
    from cloudjob.sentinel2.product import Product

    def of(name: str) -> dict:
        output = folder.output(name, ".h5")
        known = (records.record(folder, "infer", name) or {}).get("outputs", {})
        scene = {"product": name, "sha256": known.get(str(output.relative_to(folder.root)), {}).get("sha256", "")}
        if folder.stop_requested():
            raise InterruptedJob(f"{STAGE}: stopped; run the same command again")
        try:
            tif, product = folder.output(name, ".tif"), Product.open(folder.safe(name))
            found = pictures.of_restored(product, tif, side=gallery.side, gain=config.infer.preview_gain)
        except ItemError as error:
            folder.say(f"report: without a picture of {name}: {error}")
            return scene | {"pictures": {}, "why": str(error)}
        return scene | {"pictures": gallery.add(name, found)}

    found = []
    with ThreadPoolExecutor(machine.cores()) as pool:
        for number, scene in enumerate(pool.map(of, restored), 1):
            found.append(scene)
            folder.progress(0.9 * number / len(restored), f"report: pictures of {number} of {len(restored)} scenes")
    return found


def _pictured(scores: list[dict], summary: dict, *, every: bool) -> list[str]:
    """The items of evaluate whose pictures are shown: all of them, or the worst, the median and the best."""
    from cloudjob.pages.cases import cases, extremes

    found = cases(scores, summary)
    return [case.item for case in (found if every else extremes(found).values())]


def _sheets(folder: RunFolder, gallery: "Gallery", names: Iterable[str]) -> dict[str, str]:
    """By item the picture that evaluate made of it: cloudy, restored and truth side by side."""
    from cloudjob.pages.gallery import opened

    found = {}
    for name in names:
        try:
            found[name] = gallery.add(name, {"sheet": opened(folder.evaluation_picture(name))})["sheet"]
        except ItemError as error:
            folder.say(f"report: without the picture of {name}: {error}")
    return found


def _label(config: Config, folder: RunFolder, name: str) -> list[dict]:
    """What a person changed of a product's mask; nothing, and that is said, where it cannot be read."""
    from cloudjob.pages import gallery, pictures
    from cloudjob.sentinel2.labels import Label
    from cloudjob.sentinel2.product import Product

    try:
        product = Product.open(folder.safe(name))
        label = Label.read(product, folder.labels)
        if label is None:
            return []
        picture = pictures.of_label(product, label, gain=config.review.gain)
    except ItemError as error:
        folder.say(f"report: without the corrected mask of {name}: {error}")
        return []
    facts = {"product": name, "share": float(label.by_hand.mean()), "changes": label.changes()}
    shown = gallery.fitted(gallery.decoded(picture), _EXAMPLE_BYTES)
    return [facts | {"picture": gallery.source(shown)}]


# --- what the stages wrote ---------------------------------------------------------------------------------------
def _shards(config: Config, folder: RunFolder) -> dict[str, Any]:
    """{"index", "data", "examples"} of the page; nothing where there are no shards, an empty index of damaged ones."""
    from cloudjob.pages import gallery
    from cloudjob.patches import stats

    try:
        index = records.shard_index(folder, config.infer.checkpoint)
    except DamagedInputError as error:
        folder.say(f"report: without the shards: {error}")
        return {"index": {}}
    if not index:
        return {"index": index}
    png = stats.picture(folder.shards, index, number=6, gain=config.review.gain)
    examples = gallery.source(gallery.fitted(gallery.decoded(png), _EXAMPLE_BYTES))
    return {"index": index, "data": stats.collect(folder.shards, index), "examples": examples}


def _troubles(folder: RunFolder) -> list[dict]:
    """What failed or was left out, of what this run still asks for."""
    products = {row["product"] for row in folder.whole_rows(folder.scenes, stage="search")}
    pairs = {row["pair"] for row in folder.whole_rows(folder.pairs, stage="pair")}
    found = []
    for stage in _STAGES:
        for file in sorted(names_in(folder.records / stage)):
            name = file.removesuffix(".json")
            known = stage in ("search", "train") or name in products or name in pairs
            row = records.record(folder, stage, name) if known and name != file else None
            if row and row["status"] in ("failed", LEFT_OUT):
                found.append({"stage": stage, "item": name, "status": row["status"], "message": row["message"]})
    return found


def _hashes(config: Config, folder: RunFolder) -> dict[str, str]:
    """SHA-256 of what the outputs come from and of what was measured, by what it is."""
    trained = (records.record(folder, "train", "run") or {}).get("outputs", {})
    used = [config.infer.checkpoint] if config.infer.checkpoint else [folder.root / name for name in trained]
    files = {"configuration, config.yaml": folder.config, "shards, index.json": folder.shard_index}
    files |= {f"checkpoint, {path.name}": path for path in used if path.suffix == ".pt"}
    files |= {"scores, summary.json": folder.evaluation}
    return {name: file_sha256(path) for name, path in files.items() if path.exists()}
