"""The training loop: from shards to a checkpoint, on one rank of any number of them.

Its whole state follows from one integer, the samples seen: the order of the data, noise, learning rate and moving
averages are functions of it. So to stop anywhere and to go on equals never having stopped, bit for bit.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from cloudjob.diffusion import checkpoint
from cloudjob.diffusion.batch import pinned
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import InterruptedJob
from cloudjob.hpc import awake, distributed, slurm
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.hpc.energy import Energy
from cloudjob.hpc.sharing import Stopped
from cloudjob.patches import loader
from cloudjob.patches.shards import ShardSet
from cloudjob.training import ahead, data, precision
from cloudjob.training.agreement import NOTHING, Agreement, Wishes
from cloudjob.training.held_out import HeldOut
from cloudjob.training.logs import Journal, Meter
from cloudjob.training.settings import Files, Identity, Settings, Talk
from cloudjob.training.state import State

# Shares of the training after which something is done, beside what the clock brings.
DIAGNOSES = (0.05, 0.1, 0.25, 0.5, 1.0)  # looks for what makes trainings fail
VALIDATIONS = tuple(tenth / 10 for tenth in range(1, 11))
MILESTONES = (0.25, 0.5, 0.75)  # their checkpoints are kept
_RESERVE_S = 30.0  # before the end of the job: what is left to do when the last checkpoint is written
_ASKED, _LATE = 1, 2  # why a training stops
_LOOKING = 3  # one or the other, while it looked at held-out triplets


class Training:
    """One training on one rank; every rank makes one and calls `run`."""

    def __init__(
        self,
        shards: Path,
        index: dict[str, Any],
        settings: Settings,
        files: Files,
        identity: Identity,
        group: ProcessGroup,
        talk: Talk,
        *,
        anew: bool = False,
    ):
        """Opens the shards of a folder that `index` (shards/index.json) lists, and goes on from the newest checkpoint
        of this training; `anew` begins anew where there is one already."""
        self.settings, self.files, self.identity, self.group, self.talk = settings, files, identity, group, talk
        torch.set_num_threads(settings.threads or distributed.cores())
        precision.settle(group.device)
        energy = Energy(group.device, cores=torch.get_num_threads(), first_on_node=group.local_rank == 0)
        self.triplets, held_out = data.open_splits(shards, index, settings, group, talk.say)
        recipe = Recipe.of(settings.preset, settings.process, **(index["normalisation"] | settings.options))
        self.state = State(recipe, settings, settings.total(len(self.triplets)), group)
        bfloat16 = self.state.step.bfloat16
        self.stopping = _Stopping(talk, self.state)
        if not self.state.resume(files, identity, talk, anew=anew):
            self.state.take(recipe.measure(data.some(self.triplets, 64, group.device)))
        recipe = self.state.recipe
        self.held_out = HeldOut(
            recipe, settings, held_out, self.triplets, group, bfloat16=bfloat16, stopped=self.stopping.wished
        )
        self.state.step.connect(data.some(self.triplets, self.state.step.rehearsed, group.device, donors=True))
        self.agreement = Agreement(group.device, first=group.rank == 0)
        self.meter = Meter(group.device, energy, files.metrics, grid_co2=settings.grid_co2)
        self.journal = Journal(files, identity, group, self.state, self.meter, talk)

    def run(self) -> tuple[list[Path], dict[str, Any]]:
        """Trains until all samples are seen. The last checkpoint and facts of it, on rank 0; InterruptedJob when it
        has stopped in good order."""
        settings, group, state, meter, journal = self.settings, self.group, self.state, self.meter, self.journal
        first, norm = group.rank == 0, torch.zeros(())
        if state.seen < state.total:
            self._look(norm)  # what was left out when the training stopped
        saved = begun = time.monotonic()
        # Take a batch: its samples and all that is random about them follow from the samples seen.
        for samples, batch in meter.waiting(ahead.sent(_batches(self.triplets, state, group), group.device)):
            # Compute loss and gradient, those of all ranks together.
            loss, norm = state.step.gradient(samples, batch)

            # Vote: a clock, a signal or a number that is not finite is of one rank alone, what follows is of all.
            wishes = Wishes(
                stop=_LATE * self.stopping.late() or _ASKED * self.talk.stop_requested(),
                save=time.monotonic() - saved > _interval(settings, state.save_s),
                log=meter.elapsed > settings.log_s,
            )
            skip = self.agreement.vote(wishes, loss, norm, seen=state.seen)

            # Update the weights and their moving averages.
            state.advance(skip)
            meter.note(loss, settings.batch_size, skip)

            # Agree: on a GPU on the votes of the step before, unless something is to be done now.
            wishes = self._agreed(NOTHING)
            last = state.seen >= state.total
            if last or any(wishes) or state.passed((*MILESTONES, *DIAGNOSES, *VALIDATIONS)):
                wishes = self._agreed(wishes, every=True)
            if last:
                break
            if wishes.stop:
                self._stop(wishes.stop, norm)

            # Log.
            if wishes.log:
                journal.log(norm)

            # Save.
            if wishes.save or state.passed(MILESTONES):
                if first:
                    self._save()
                saved = time.monotonic()
                distributed.barrier()

            # Look at held-out triplets.
            self._look(norm)
            self.stopping.step_s, begun = time.monotonic() - begun, time.monotonic()
        return self._end(norm)

    def _agreed(self, wishes: Wishes, *, every: bool = False) -> Wishes:
        """These wishes and those of the verdicts that are known by now, whose bad steps are counted."""
        for verdict in self.agreement.verdicts(every=every):
            wishes = wishes.and_those(verdict.wishes)
            self.state.count(bad=verdict.bad, seen=verdict.seen, say=self.talk.say)
        return wishes

    def _save(self) -> None:
        facts = {"seen": self.state.seen, **self.meter.used(), "energy": self.meter.kind}
        self.state.save(self.files, self.identity, facts, milestones=MILESTONES)

    def _look(self, norm: Tensor) -> None:
        """All ranks look at held-out triplets, if it is time to and they have not at these samples. They stop if they
        have to meanwhile: nothing is written of that look, and the training that goes on begins with it."""
        self._unless_stopped(self._looked, norm)

    def _unless_stopped(self, work: Callable[[], None], norm: Tensor) -> None:
        """All ranks share this work, and stop where they have to meanwhile."""
        try:
            work()
        except Stopped:
            self._stop(_LOOKING, norm)

    def _looked(self) -> None:
        state, journal = self.state, self.journal
        if state.passed(DIAGNOSES) and journal.lacks(self.files.checks):
            share = state.seen / state.total
            journal.diagnosis(self.held_out.faults(state.averaged("none"), share=share))
        if state.passed(VALIDATIONS) and journal.lacks(self.files.validation):
            journal.validation(*self.held_out.validate(state.averaged(state.chosen)))

    def _stop(self, why: int, norm: Tensor) -> NoReturn:
        """Logs, saves and leaves; a call of all ranks. `norm` is that of the gradient of the last step done."""
        late = any(distributed.gather(self.stopping.late()))  # now: what a save takes may be found to be less
        self.journal.settle()
        if self.meter.samples:
            self.journal.log(norm)
        if self.group.rank == 0:
            self._save()
        distributed.barrier()
        self.journal.card("stop", **self.meter.used(), energy=self.meter.kind)
        raise distributed.raised_on_all_ranks(InterruptedJob(_stopped(self.state, why, late=late)))

    def _end(self, norm: Tensor) -> tuple[list[Path], dict[str, Any]]:
        """All samples are seen: the last checkpoint is completed, and a last look taken. A training that is stopped
        meanwhile, and goes on from the last sample, does all of this again."""
        if self.meter.samples:
            self.journal.log(norm)
        self._unless_stopped(self._choose, norm)
        if self.group.rank == 0:
            self._save()
        distributed.barrier()
        self._look(norm)
        self.journal.settle()
        if self.group.rank:
            return [], {}
        path = checkpoint.newest(self.files.checkpoints)
        self.journal.card("end", **self.meter.used(), energy=self.meter.kind)
        return [path], {"checkpoint": path.name, "seen": self.state.seen, "triplets": len(self.triplets)}

    def _choose(self) -> None:
        """Finds the best moving average, and calibrates its ensemble."""
        state = self.state
        chosen = self.held_out.best_average(state.averaged, state.chosen, self.talk.say)
        state.calibration = self.held_out.calibrate(state.averaged(chosen))
        state.chosen = chosen


class _Stopping:
    """Whether it is time to stop: somebody wishes so, or the job ends."""

    def __init__(self, talk: Talk, state: State):
        self.talk, self.state, self.clock = talk, state, awake.of_process()
        self.step_s = 0.0  # what a step takes

    def late(self) -> bool:
        return _late(2 * (self.state.save_s + self.step_s), suspended_s=self.clock.suspended)

    def wished(self) -> bool:
        return self.talk.stop_requested() or self.late()


def _batches(triplets: ShardSet, state: State, group: ProcessGroup) -> Iterator[tuple[list[int], dict]]:
    """(sample numbers, arrays) of this rank for each global batch that is left."""
    gpu = group.device.type == "cuda"
    allocate: Callable = pinned if gpu else np.empty
    return loader.batches(
        triplets,
        seed=state.settings.seed,
        start=state.seen,
        stop=state.total,
        batch=state.settings.batch_size,
        rank=group.rank,
        size=group.size,
        threads=state.settings.loader_threads,
        donors=state.settings.synthetic_clouds > 0,
        allocate=allocate,
        in_use=ahead.IN_USE if gpu else 1,
    )


def _late(needed_s: float, *, suspended_s: float = 0.0) -> bool:
    """Whether the job ends before what takes `needed_s` seconds, and the rest of the work, can be done. SLURM adds the
    seconds that a job was suspended to its end, which the job was told before."""
    deadline = slurm.deadline()
    return deadline is not None and time.time() + needed_s + _RESERVE_S > deadline + suspended_s


def _interval(settings: Settings, save_s: float) -> float:
    """Seconds between two checkpoints."""
    return settings.checkpoint_s or checkpoint.interval(save_s, 3600 * settings.failure_h)


def _stopped(state: State, why: int, *, late: bool) -> str:
    reason = "the job's time is nearly over" if why == _LATE or (why == _LOOKING and late) else "asked to"
    reason += ", while it looked at held-out triplets" * (why == _LOOKING)
    return f"train: stopped at {state.seen} of {state.total} samples ({reason}), saved; run the same command again"
