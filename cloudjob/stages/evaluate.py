"""evaluate: scores restored scenes or the triplets of the held-out split, whichever `evaluate.of` names."""

from types import ModuleType

from cloudjob.config.models import Config
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder

STAGE = "evaluate"


def items(config: Config, workspace: RunFolder) -> list[Item]:
    return _kind(config).items(config, workspace)


def run(config: Config, workspace: RunFolder) -> Summary:
    return _kind(config).run(config, workspace)


def _kind(config: Config) -> ModuleType:
    from cloudjob.scoring import scenes, triplets

    return {"scenes": scenes, "triplets": triplets}[config.evaluate.of]
