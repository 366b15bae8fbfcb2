"""report: one self-contained page with the scores, the pictures, the training curve and what made them."""

from pathlib import Path

from cloudjob.config.models import Config
from cloudjob.files import digest, read_json, read_jsonl, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

STAGE = "report"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """The page; InputError while nothing is scored."""
    scores = read_json(folder.made_by(folder.evaluation, "evaluate"))
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

    index = records.shard_index(folder, config.infer.checkpoint)
    examples = stats.picture(folder.shards, index, number=6, gain=config.review.gain) if index else None
    return report.page(
        report.Run(
            summary=read_json(folder.evaluation),
            scores=read_jsonl(folder.scores),
            pictures=folder.evaluation_folder,
            metrics=_rows(folder.metrics),
            validation=_rows(folder.validation),
            checks=_rows(folder.checks),
            index=index,
            data=stats.collect(folder.shards, index) if index else None,
            examples=examples,
            configuration=source.dump(config),
        )
    )


def _rows(path: Path) -> list[dict]:
    return read_jsonl(path) if path.exists() else []
