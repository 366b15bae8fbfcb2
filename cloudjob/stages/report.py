"""report: one self-contained page with the scores, the pictures, the training curve and what made them."""

from cloudjob.config.models import Config
from cloudjob.errors import DamagedInputError
from cloudjob.files import digest, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

STAGE = "report"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """The page; InputError while nothing is scored."""
    scores = folder.document(folder.evaluation, stage="evaluate")
    inputs = {"evaluation": digest(scores), "train": records.output_digest(folder, "train", "run")}
    return [Item(STAGE, "run", {}, inputs)]


def run(config: Config, folder: RunFolder) -> Summary:
    """Makes report/index.html."""

    def make(item: Item) -> Made:
        write_text(folder.report, _page(config, folder))
        return [folder.report], None

    summary = records.work(folder, STAGE, items(config, folder), make)
    summary.output = f"report: {folder.report}"
    return summary


def _page(config: Config, folder: RunFolder) -> str:
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
        )
    )
