"""train: trains the network on the shards; its whole state follows from one integer, the samples seen."""

from dataclasses import fields
from typing import TYPE_CHECKING

from cloudjob.config.models import Config
from cloudjob.errors import ConfigError, CorruptFileError, InputError
from cloudjob.files import digest, read_json, write_json
from cloudjob.names import ProductName, stamp
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.hpc.distributed import ProcessGroup
    from cloudjob.training.loop import Training

STAGE = "train"
_WAIT, _GO, _END = "wait", "go", "end"  # what rank 0, who holds the lease, tells the others
# Keys of the section that affect how the training runs, but not its result.
_EXECUTION = {
    *("micro_batch", "threads", "loader_threads", "local_dir", "compile", "max_skipped"),
    *("checkpoint_s", "failure_h", "log_s", "tensorboard", "grid_co2"),
}
# Keys that older records lack, with their values then.
_NEWER = {"train": {"betas": [0.9, 0.99], "weight_decay": 0.01, "first_guess": "surroundings", "deviation": False}}


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item, the run: it depends on the shards and on the settings that its result depends on."""
    index = _index(folder)
    settings = config.section("train")
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in _EXECUTION}
    return [Item(STAGE, "run", settings, {"shards": digest(index)}, newer=_NEWER)]


def _index(folder: RunFolder) -> dict:
    """The shards to train on. A training that began while some cloudy products had no shard stays with those that it
    began with, so that the others do not cost it; `--force` takes them too."""
    now = folder.index()
    if folder.force or not folder.trained_on.exists():
        return now
    try:
        begun = read_json(folder.trained_on)
    except CorruptFileError as error:
        folder.say(f"train: {error}; it counts as none")
        return now
    whole = all(entry in now["files"] for entry in begun["files"])
    came = [entry for entry in now["files"] if entry not in begun["files"]]
    return begun if whole and came == _of(begun["lacking"], came) else now


def _of(products: list[str], entries: list[dict]) -> list[dict]:
    """The shards of these cloudy products."""
    names = [ProductName.parse(product) for product in products]
    own = tuple(f"{name.tile}_{stamp(name.sensing)}_" for name in names)
    return [entry for entry in entries if entry["pair"].startswith(own)]


def _note_lacking(folder: RunFolder, index: dict) -> None:
    """Keeps the index of a training that begins without some pairs."""
    folder.trained_on.unlink(missing_ok=True)
    if "lacking" in index:
        write_json(folder.trained_on, index)


def _say_lacking(folder: RunFolder, index: dict) -> None:
    """Names the products that are not trained on, and what can be done for those that have a shard by now."""
    if lacking := index.get("lacking"):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        folder.say(f"train: on all but {len(lacking)} cloudy products without a shard: {', '.join(lacking[:3])}{more}")
        if came := len(_of(lacking, folder.index()["files"])):
            again = f"cloudjob train {folder.quoted} --force"
            folder.say(f"train: {came} of them have one by now; to train on them too: {again}")


def _one_level(index: dict) -> None:
    """ConfigError where reflectance at the top of the atmosphere and at the surface would be trained on together."""
    levels = sorted({entry.get("level", "L2A") for entry in index["files"]})
    if len(levels) > 1:
        raise ConfigError(
            f"train: the shards are of several levels ({', '.join(levels)}), which are not the same quantity. Train on "
            "one of them, then start from its weights on the other: cloudjob train CONFIG --init-from CHECKPOINT"
        )


def run(config: Config, folder: RunFolder) -> Summary:
    """Trains, or resumes the training of this run folder. Every rank calls this; rank 0's summary counts."""
    (item,) = items(config, folder)
    index = _index(folder)
    _say_lacking(folder, index)
    if index["normalisation"] is None and "lacking" in index:
        raise InputError(f"train: no triplet to train on is made yet. Run: cloudjob run {folder.quoted} --until shard")
    if index["normalisation"] is None:
        raise ConfigError("train: no triplet to train on; loosen shard.cloud or shard.split, or add tiles and dates")
    _one_level(index)
    records.require(folder, "shard", [entry["pair"] for entry in index["files"]], reader=STAGE)
    if records.wanted(folder, [item]) and not folder.force and records.why(folder, item) is None:
        return Summary(STAGE, skipped=[item.name])

    from cloudjob.hpc import distributed

    with distributed.process_group() as group:

        def train(item: Item) -> Made:
            with group.reporting_failures():  # here too: further out, a failed item is no longer an exception
                if group.rank == 0:
                    distributed.gather(_GO)
                training = _training(config, folder, item, index, group)
                if group.rank == 0:
                    _note_lacking(folder, index)
                return training.run()

        with group.reporting_failures():
            if group.rank == 0:
                if not records.forced(folder, item):  # so that a --force of now is a new one
                    folder.forced.unlink(missing_ok=True)
                summary = records.work(folder, STAGE, [item], train, meanwhile=lambda: distributed.gather(_WAIT))
                if summary.skipped:
                    distributed.gather(_END)
                return summary
            while (word := distributed.gather(None)[0]) == _WAIT:
                pass
            if word == _END:
                return Summary(STAGE, skipped=["run"])
            train(item)
            return Summary(STAGE, done=["run"])


def _training(config: Config, folder: RunFolder, item: Item, index: dict, group: "ProcessGroup") -> "Training":
    """The training of this run folder, its settings as plain values."""
    from cloudjob.training.loop import Training
    from cloudjob.training.settings import Files, Identity, Settings, Talk

    section = config.train
    given = {name: getattr(section, name) for name in type(section).model_fields}
    known = {each.name for each in fields(Settings)}
    settings = Settings(
        **{name: value for name, value in given.items() if name in known},
        seed=config.seed,
        options=section.options(),
        sampler=config.infer.sampler,
        steps=config.infer.steps,
        members=config.evaluate.members,
        preview_gain=config.infer.preview_gain,
    )
    files = Files(**{each.name: getattr(folder, each.name) for each in fields(Files)})
    talk = Talk(say=folder.say, progress=folder.progress, stop_requested=folder.stop_requested)
    identity = Identity(config=item.config, inputs=item.inputs)
    return Training(folder.shards, index, settings, files, identity, group, talk, anew=records.forced(folder, item))
