"""The state of a training between two steps: made anew, from a checkpoint or from other weights, and kept."""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloudjob import __version__
from cloudjob.diffusion import checkpoint
from cloudjob.diffusion.average import averages_of
from cloudjob.diffusion.checkpoint import Checkpoint
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import ConfigError, CorruptFileError, ItemError
from cloudjob.files import ask_guards, changes, read_json, write_json
from cloudjob.hpc import distributed
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.pixels import BANDS
from cloudjob.training.settings import Files, Identity, Settings, Talk
from cloudjob.training.step import Step, learning_rate


class State:
    """All that is learned, on one rank. It is a function of (settings, shards, samples seen), and of nothing else."""

    def __init__(self, recipe: Recipe, settings: Settings, total: int, group: ProcessGroup):
        """A new training: the network is initialised from torch's global generator, which `settings.seed` seeds."""
        torch.manual_seed(settings.seed)
        self.recipe, self.settings, self.total, self.group = recipe, settings, total, group
        self.network: nn.Module = recipe.network().to(group.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = distributed.run_on_all_ranks(lambda: Step(recipe, self.network, settings, ranks=group.size))
        self.averages = averages_of(self.network, settings.average)
        self.seen, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.chosen = "0.10" if settings.average == "auto" else settings.average  # until the end of training
        self.calibration: dict[str, Any] = {}  # until the end of training
        self.save_s = 1.0  # what a save takes: measured at the first

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.settings, seen=self.seen, total=self.total)

    def count(self, *, bad: bool, seen: int, say: Any) -> None:
        """Takes down whether the step after `seen` samples was skipped, as its loss or gradient was not finite.

        ItemError, on all ranks, after `max_skipped` such steps in a row.
        """
        if not bad:
            self.skipped_in_a_row = 0
            return
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        what = f"train: the loss or its gradient was not finite after {seen} samples"
        say(f"{what}; that step is skipped ({self.skipped_in_a_row} in a row)")
        if self.skipped_in_a_row >= self.settings.max_skipped:
            hint = "lower train.lr, or look at the shards"
            raise distributed.raised_on_all_ranks(
                ItemError(f"{what}, for {self.skipped_in_a_row} steps in a row: {hint}")
            )

    def advance(self, skip: Tensor | None = None) -> None:
        """The optimizer's step, but where `skip` is 1 (see `Step.update`); the weights of now into the averages."""
        self.step.update(self.rate, skip)
        self.seen += self.settings.batch_size
        self.group.note(self.seen)
        for average in self.averages.values():
            average.update(self.network, step=self.seen / self.settings.batch_size)

    def passed(self, shares: tuple[float, ...], seen: int | None = None) -> bool:
        """Whether the step just done, or the one that ended at `seen` samples, passed one of these shares of all."""
        seen = self.seen if seen is None else seen
        return any(seen - self.settings.batch_size < share * self.total <= seen for share in shares)

    def averaged(self, width: str) -> nn.Module:
        """A network with the weights of this moving average, or those of now ("none")."""
        network = copy.deepcopy(self.network).eval()
        if width != "none":
            self.averages[width].copy_to(network)
        return network

    # --- checkpoints -------------------------------------------------------------------------------------------
    def save(self, files: Files, identity: Identity, facts: dict, *, milestones: tuple[float, ...]) -> None:
        """Writes a checkpoint; those at the milestones (shares of the training) are kept."""
        begun = time.monotonic()
        checkpoint.save(
            files.checkpoints,
            Checkpoint(
                seen=self.seen,
                total=self.total,
                skipped=[self.skipped, self.skipped_in_a_row],
                model=self.network.state_dict(),
                averages={width: average.state_dict() for width, average in self.averages.items()},
                chosen=self.chosen,
                calibration=self.calibration,
                optimizer=self.step.optimizer.state_dict(),
                config=identity.config,
                recipe=self.recipe.facts(),
                bands=list(BANDS),
                cloudjob_version=__version__,
                key=checkpoint.key(identity.config, identity.inputs),
            ),
            facts,
            keep=lambda seen: self.passed(milestones, seen),
        )
        self.save_s = time.monotonic() - begun

    def take(self, recipe: Recipe) -> None:
        """The recipe as it was measured, in place of the one that this was made with: of the same network."""
        self.recipe = self.step.alone.recipe = recipe

    def resume(self, files: Files, identity: Identity, talk: Talk, *, anew: bool) -> bool:
        """Goes on from the newest readable checkpoint of this very training, which rank 0 finds, and whose recipe it
        takes; False where a new training begins, from the weights of `init_from` if there are any, when all ranks have
        read them. What an earlier one left is then kept aside whole.

        ConfigError where an earlier training would be lost unasked: one of other settings, on other shards, of a
        version with another network; and where `init_from` cannot be taken. `anew` asks for it, once: a training that
        was begun by it goes on.
        """
        first = self.group.rank == 0
        found = distributed.run_on_all_ranks(lambda: self._newest(files, identity, talk, anew) if first else None)
        path = distributed.gather(found and found[0])[0]
        if path is None:
            given = distributed.run_on_all_ranks(self._given)
            distributed.run_on_all_ranks(lambda: _begin(files, identity, talk, anew) if first else None)
            if given is not None:
                self._take(given, talk)
            return False
        kept = distributed.run_on_all_ranks(lambda: found[1] if found else checkpoint.load(path))
        self.take(Recipe.of(**kept.recipe))  # measured again, on another device, it might differ in a last digit
        self.seen, (self.skipped, self.skipped_in_a_row) = kept.seen, kept.skipped
        self.network.load_state_dict(kept.model)
        for width, average in self.averages.items():
            average.load_state_dict(kept.averages[width])
        if kept.total == self.total:  # else they were those of a shorter training at its end
            self.chosen, self.calibration = kept.chosen, kept.calibration
        self.step.optimizer.load_state_dict(kept.optimizer)
        talk.say(f"train: goes on from {path.name}, {self.seen} of {self.total} samples seen")
        return True

    def _newest(self, files: Files, identity: Identity, talk: Talk, anew: bool) -> tuple[Path, Checkpoint] | None:
        """The checkpoint to go on from; None for a new training."""
        checkpoint.sweep(files.checkpoints)
        found = checkpoint.load_newest(files.checkpoints)
        if anew and not _begun_by_force(files, identity):
            return None
        if found is None:
            return None
        path, kept = found
        checkpoint.check_bands(path, kept)
        refused = self._differs(kept, identity)
        if not refused and self._fitting(kept.model) != {*kept.model, *self.network.state_dict()}:
            refused = (
                f": cloudjob {kept.cloudjob_version}, which wrote it, had another network. Go on with that version"
            )
        if refused:
            raise ConfigError(
                f"{path}{refused}; or start anew: cloudjob train with --force (it is kept aside), or in another "
                f"--run-dir, from its weights with --init-from {path}"
            )
        if anew:
            talk.say(f"train: --force began this training (to begin once more, remove {files.forced})")
        return found

    def _differs(self, kept: Checkpoint, identity: Identity) -> str:
        """Why the checkpoint is of another training; '' where it is of this one, or of one that this makes longer."""
        if kept.is_of(identity.config, identity.inputs):
            return ""
        changed = changes(kept.config, identity.config)
        length = {*changes(kept.config, identity.config, values=False)} <= {"train.epochs", "train.samples"}
        if checkpoint.key(kept.written_config or kept.config, identity.inputs) != kept.key:
            changed.append("shards: others than it was trained on")
        elif length and (self.total == kept.total or (self.total > kept.total and not self.settings.decay)):
            return ""
        state, back = ("an unfinished", "go on with it") if kept.seen < kept.total else ("a finished", "keep it")
        lines = "".join(f"  {change}\n" for change in changed)
        if length and self.settings.decay:
            lines += "with train.decay the learning rate has followed the old length: a longer training is a new one\n"
        seen = f"{kept.seen} of {kept.total} samples"
        return f" is of {state} training ({seen}), set otherwise:\n{lines}set these back to {back}"

    def _fitting(self, given: dict[str, Tensor]) -> set[str]:
        """The tensors of another network that are of the same name and shape in this one."""
        own = self.network.state_dict()
        return {name for name in own if name in given and given[name].shape == own[name].shape}

    def _given(self) -> dict[str, Tensor] | None:
        """The weights of `init_from`; ConfigError where there are none that fit."""
        path = self.settings.init_from
        if path is None:
            return None
        if not path.is_file():
            raise ConfigError(f"train.init_from: {path} does not exist, or is no file")
        try:
            given = checkpoint.load(path)
        except CorruptFileError as error:  # of the user's choice: it is not ours to set it aside
            raise ConfigError(f"train.init_from: {error}") from None
        checkpoint.check_bands(path, given)
        if not self._fitting(given.weights):
            raise ConfigError(f"train.init_from: no tensor of {path} fits this network ({self.settings.preset})")
        return given.weights

    def _take(self, given: dict[str, Tensor], talk: Talk) -> None:
        """Takes the weights of another training where they fit, and says which did not."""
        own, fits = self.network.state_dict(), self._fitting(given)
        self.network.load_state_dict({name: given[name] for name in fits}, strict=False)
        for average in self.averages.values():
            average.load_state_dict(self.network.state_dict())
        talk.say(f"train: starts from {self.settings.init_from}: {len(fits)} of {len(own)} tensors taken")
        for name in sorted({*own, *given} - fits):
            here, there = (tuple(tensors[name].shape) if name in tensors else "none" for tensors in (own, given))
            talk.say(f"train:   does not fit: {name}, here {here}, there {there}")


def _begun_by_force(files: Files, identity: Identity) -> bool:
    """Whether the training that lies here is this one, and was begun by an earlier --force."""
    try:
        return read_json(files.forced) == {"key": checkpoint.key(identity.config, identity.inputs)}
    except CorruptFileError:  # or missing
        return False


def _begin(files: Files, identity: Identity, talk: Talk, anew: bool) -> None:
    """Keeps aside what an earlier training has left, and notes that this one was begun by --force, if it was."""
    if any(files.checkpoints.glob("step-*")):
        why = "--force" if anew else "no checkpoint of it can be read"
        talk.say(f"train: starts anew ({why}); the earlier training is kept in {set_aside(files.checkpoints.parent)}")
    if anew:
        write_json(files.forced, {"key": checkpoint.key(identity.config, identity.inputs)})


def set_aside(folder: Path) -> Path:
    """The folder of a training renamed: its checkpoints with all that was written beside them."""
    number = 1
    while (target := folder.with_name(f"{folder.name}-before-{number}")).exists():
        number += 1
    ask_guards()
    return folder.rename(target)
