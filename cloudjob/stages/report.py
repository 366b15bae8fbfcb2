"""report: one self-contained page with the scores, the pictures, the training curve and what made them."""

from collections.abc import Iterable

from cloudjob.config.models import Config
from cloudjob.errors import DamagedInputError, ItemError
from cloudjob.files import digest, write_text
from cloudjob.run import labels, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

STAGE = "report"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """The page; InputError while nothing is scored."""
    scores = folder.document(folder.evaluation, stage="evaluate")
    inputs = {"evaluation": digest(scores), "train": records.output_digest(folder, "train", "run")}
    return [Item(STAGE, "run", {}, inputs | labels.digests(folder, _with_masks(folder)))]


def _with_masks(folder: RunFolder) -> list[str]:
    """The products of the run whose masks were exported."""
    return sorted(path.stem for path in folder.labels.glob("*.tif") if folder.safe(path.stem).is_dir())


def run(config: Config, folder: RunFolder) -> Summary:
    """Makes report/index.html."""

    def make(item: Item) -> Made:
        write_text(folder.report, _page(config, folder, labels.among(item.inputs, _with_masks(folder))))
        return [folder.report], None

    summary = records.work(folder, STAGE, items(config, folder), make)
    summary.output = f"report: {folder.report}"
    return summary


def _page(config: Config, folder: RunFolder, by_hand: Iterable[str]) -> str:
    from cloudjob.config import source
    from cloudjob.pages import report
    from cloudjob.patches import stats

    try:
        index = records.shard_index(folder, config.infer.checkpoint)
    except DamagedInputError as error:
        folder.say(f"report: without the shards: {error}")
        index = {}
    examples = stats.picture(folder.shards, index, number=6, gain=config.review.gain) if index else None
    return report.page(
        report.Run(
            summary=folder.document(folder.evaluation, stage="evaluate"),
            scores=folder.whole_rows(folder.scores, stage="evaluate"),
            pictures=folder.evaluation_folder,
            metrics=folder.whole_rows(folder.metrics, stage="train"),
            validation=folder.whole_rows(folder.validation, stage="train"),
            checks=folder.whole_rows(folder.checks, stage="train"),
            index=index,
            data=stats.collect(folder.shards, index) if index else None,
            examples=examples,
            configuration=source.dump(config),
            labels=[found for name in by_hand for found in _label(config, folder, name)],
        )
    )


def _label(config: Config, folder: RunFolder, name: str) -> list[dict]:
    """What a person changed of a product's mask; nothing, and that is said, where it cannot be read."""
    from cloudjob.pages import pictures
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
    return [facts | {"picture": picture}]
