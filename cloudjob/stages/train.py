"""train: trains the network on the shards; its whole state follows from one integer, the samples seen."""

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from cloudjob import __version__
from cloudjob.config.models import Config
from cloudjob.errors import ConfigError, InputError, InterruptedJob, ItemError
from cloudjob.run.records import Item, Summary, changes
from cloudjob.run.folder import RunFolder
from cloudjob.files import digest, write_bytes

STAGE = "train"
_LOOKS = (0.05, 0.1, 0.25, 0.5, 1.0)  # shares of the training after which it is looked at for what makes it fail
_VALIDATIONS = tuple(tenth / 10 for tenth in range(1, 11))
_MILESTONES = (0.25, 0.5, 0.75)  # their checkpoints are kept
_PACE = {  # how it is done, not what comes out
    *("micro_batch", "threads", "loader_threads", "local_dir", "compile", "max_skipped"),
    *("checkpoint_s", "failure_h", "log_s", "tensorboard", "grid_co2"),
}
_LEAVE_S = 30.0  # before the end of the job: what is left to do when the last checkpoint is written


def items(config: Config, workspace: RunFolder) -> list[Item]:
    if not workspace.shard_index.exists():
        raise InputError(f"{workspace.shard_index} is not there yet. Run: cloudjob shard {workspace.root}")
    index = json.loads(workspace.shard_index.read_text())
    settings = config.section("train")
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in _PACE}
    return [Item(STAGE, "run", settings, {"shards": digest(index)})]


def run(config: Config, workspace: RunFolder) -> Summary:
    item = items(config, workspace)[0]
    index = json.loads(workspace.shard_index.read_text())
    if index["normalisation"] is None:
        raise ConfigError("train: no triplet to train on; loosen shard.cloud or shard.split, or add tiles and dates")
    records.require(workspace, "shard", [entry["pair"] for entry in index["files"]], reader=STAGE)
    if not workspace.force and records.why(workspace, item) is None:
        return records.work(workspace, STAGE, [item], None)

    from cloudjob.hpc import distributed

    with distributed.world() as world:

        def train(item: Item):
            with world.answering():  # here too: what fails an item is no exception any more further out
                return Training(config, workspace, item, index, world).run()

        with world.answering():
            if world.rank == 0:
                return records.work(workspace, STAGE, [item], train)
            train(item)
            return Summary(STAGE, done=["run"])


class Training:
    """One training on one rank. All but the wall clock is a function of (configuration, shards, samples seen)."""

    def __init__(self, config: Config, workspace: RunFolder, item: Item, index: dict, world):
        import torch

        from cloudjob.hpc import distributed, slurm
        from cloudjob.hpc.energy import Energy

        self.config, self.workspace, self.world, self.settings = config, workspace, world, config.train
        self.item = item
        self.key = digest([item.config, item.inputs])
        cores = distributed.cores()
        torch.set_num_threads(self.settings.threads or cores)
        energy = Energy(world.device, cores=torch.get_num_threads(), first_on_node=world.local_rank == 0)
        self.shards, held_out = self._open(index)
        batch = self.settings.batch_size
        wanted = self.settings.samples or self.settings.epochs * len(self.shards)
        self.total = max(1, round(wanted / batch)) * batch
        self._build(index, held_out)
        self.seen, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.save_s, self.step_s, self.deadline = 1.0, 0.0, slurm.deadline()  # a save's time is measured at the first
        self._resume()
        some = self._look(2)
        self.step.connect(some | {"donor": some["mask"]})
        self._begin(energy)

    def _build(self, index: dict, held_out) -> None:
        """Recipe, network and all that is learned, as they are before the first step."""
        import torch

        from cloudjob.diffusion.average import GAMMAS, PowerAverage
        from cloudjob.diffusion.recipe import Recipe
        from cloudjob.hpc import distributed
        from cloudjob.training.held_out import HeldOut
        from cloudjob.training.step import Step

        torch.manual_seed(self.config.seed)
        options = index["normalisation"] | self.settings.options()
        recipe = Recipe.of(self.settings.preset, self.settings.process, **options)
        self.recipe = recipe.measure(self._look(64))
        self.network = self.recipe.network().to(self.world.device, memory_format=torch.channels_last)
        options = {"seed": self.config.seed, "ranks": self.world.size}
        self.step = distributed.together(lambda: Step(self.recipe, self.network, self.settings, **options))
        device, bfloat16 = self.world.device, self.step.bfloat16
        self.held_out = HeldOut(self.config, self.recipe, held_out, self.shards, device, bfloat16=bfloat16)
        self.averages = {width: PowerAverage(self.network, gamma=gamma) for width, gamma in GAMMAS.items()}
        self.calibration: dict = {}  # until the end of training
        self.chosen = "0.10" if self.settings.average == "auto" else self.settings.average  # until the end of training

    def _begin(self, energy) -> None:
        """What is written down: the logs go on from where the training does."""
        import torch

        from cloudjob.hpc import distributed, machine
        from cloudjob.training import logs

        rows = logs.rows(self.workspace.metrics)  # the last may be of samples that will be seen again
        before = rows[-1] if rows else {}
        self.meter = logs.Meter(self.world.device, energy, before=before, grid_co2=self.settings.grid_co2)
        self.places = distributed.gather((socket.gethostname(), machine.device_name(self.world.device)))
        self.board = None
        if self.world.rank:
            return
        for kind in ("metrics", "checks", "validation"):
            logs.trim(getattr(self.workspace, kind), self.seen)
        if self.settings.tensorboard:
            self.board = logs.Board(self.workspace.tensorboard, self.seen)
        facts = {"threads": torch.get_num_threads(), "batch": self.settings.batch_size, "micro_batch": self.step.micro}
        self._card("start", **facts, bfloat16=self.step.bfloat16, energy_from=energy.source)

    def _open(self, index: dict) -> list:
        """The training and the held-out split, every file checked: where it lies, or while it is copied to the node."""
        from cloudjob.hpc import distributed
        from cloudjob.patches import loader
        from cloudjob.patches.shards import ShardSet

        folder, world, splits = self.workspace.shard_index.parent, self.world, ("train", "val")

        def check() -> Path:
            for split in splits:
                loader.verify(folder, index, split, world.rank, world.size)
            return folder

        def copy() -> Path:
            target = node_folder(self.settings.local_dir) / digest(index)[:16]
            if world.local_rank == 0:
                loader.local_copy(folder, index, target, self.workspace.say, splits)
            return target

        place = distributed.together(check if self.settings.local_dir is None else copy)
        return [ShardSet(place, index, split) for split in splits]

    # --- the loop ----------------------------------------------------------------------------------------------
    def run(self):
        from cloudjob.hpc import distributed

        saved = begun = time.monotonic()
        for samples, arrays in self._batches():
            loss, norm = self.step.gradient(samples, arrays)
            last = self.seen + self.settings.batch_size >= self.total
            stop, save, log, bad = self._agree(loss, norm, save=time.monotonic() - saved > self._interval())
            self._advance(bad)
            self.meter.note(None if bad else loss, self.settings.batch_size)
            if log or last or stop:
                self._log(norm)
            if stop or save or last or self._passed(_MILESTONES):
                if self.world.rank == 0:
                    self._save(last)
                saved = time.monotonic()
                distributed.barrier()
            if self.world.rank == 0:
                self._look_at_it()
            if stop and not last:
                self._stop(stop)
            self.step_s, begun = time.monotonic() - begun, time.monotonic()
        distributed.barrier()  # a launcher takes ranks for lost when others have long left: rank 0 was still looking
        if self.world.rank:
            return None
        path = self.workspace.newest_checkpoint()
        self._card("end", **self.meter.used(), energy=self.meter.kind)
        return [path], {"checkpoint": path.name, "seen": self.seen, "triplets": len(self.shards)}

    def _batches(self) -> Iterator[tuple]:
        import numpy as np

        from cloudjob.patches import loader
        from cloudjob.diffusion.batch import pinned

        source = loader.batches(
            self.shards,
            seed=self.config.seed,
            start=self.seen,
            stop=self.total,
            batch=self.settings.batch_size,
            rank=self.world.rank,
            size=self.world.size,
            threads=self.settings.loader_threads,
            donors=self.settings.synthetic_clouds > 0,
            allocate=pinned if self.world.device.type == "cuda" else np.empty,
        )
        while True:
            begun = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.meter.waited += time.monotonic() - begun
            yield batch

    def _agree(self, loss, norm, *, save: bool) -> list[int]:
        """What all ranks do after this step, as soon as one of them has reason to: stop (1 when asked to, 2 when the
        job's time is over), save, log (rank 0's clock), skip it (no finite loss, or gradient)."""
        import torch

        from cloudjob.hpc import distributed

        late = self.deadline and time.time() + 2 * (self.save_s + self.step_s) + _LEAVE_S > self.deadline
        first = self.world.rank == 0
        wishes = [2 * bool(late) or int(self.workspace.stop_requested()), save and first]
        wishes.append(first and self.meter.elapsed > self.settings.log_s)
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        votes = torch.tensor(wishes, dtype=torch.int32, device=bad.device)
        # Waits for the device: from here on the batch's buffers may be filled anew.
        return distributed.most(torch.cat([votes, bad.to(torch.int32).view(1)])).tolist()

    def _advance(self, bad: int) -> None:
        """The optimizer's step, unless it is a bad one; the weights of now into the averages."""
        from cloudjob.hpc import distributed

        if bad:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            what = f"train: the loss or its gradient was not finite after {self.seen} samples"
            self.workspace.say(f"{what}; that step is skipped ({self.skipped_in_a_row} in a row)")
            if self.skipped_in_a_row >= self.settings.max_skipped:
                raise distributed.everywhere(
                    ItemError(
                        f"{what}, for {self.skipped_in_a_row} steps in a row: lower train.lr, or look at the shards"
                    )
                )
        else:
            self.skipped_in_a_row = 0
            self.step.update(self.rate())
        self.seen += self.settings.batch_size
        self.world.note(self.seen)
        for average in self.averages.values():
            average.update(self.network, step=self.seen / self.settings.batch_size)

    def _stop(self, why: int) -> None:
        from cloudjob.hpc import distributed

        reason = "the job's time is nearly over" if why == 2 else "asked to"
        text = f"train: stopped at {self.seen} of {self.total} samples ({reason}), saved; run the same command again"
        if self.world.rank == 0:
            self._card("stop", **self.meter.used(), energy=self.meter.kind)
        raise distributed.everywhere(InterruptedJob(text))

    def rate(self) -> float:
        """Learning rate: linear warm-up, then half a cosine to zero, both by samples seen."""
        rise = min(1.0, (self.seen + self.settings.batch_size) / max(self.settings.warmup, 1))
        fall = 0.5 + 0.5 * math.cos(math.pi * self.seen / self.total) if self.settings.decay else 1.0
        return self.settings.lr * rise * fall

    # --- state -------------------------------------------------------------------------------------------------
    def _state(self) -> dict:
        from cloudjob.pixels import BANDS

        return {
            "seen": self.seen,
            "total": self.total,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "model": self.network.state_dict(),
            "averages": {width: average.state_dict() for width, average in self.averages.items()},
            "chosen": self.chosen,
            "calibration": self.calibration,
            "optimizer": self.step.optimizer.state_dict(),
            "config": self.item.config,
            "recipe": self.recipe.facts(),
            "bands": list(BANDS),
            "cloudjob_version": __version__,
            "key": self.key,
        }

    def _save(self, last: bool) -> None:
        from cloudjob.diffusion import checkpoint

        if last:
            self._choose_average()
            self.calibration = self.held_out.calibrate(self._averaged(self.chosen))

        def milestone(seen: int) -> bool:
            return self._passed(_MILESTONES, seen)

        begun = time.monotonic()
        facts = {"seen": self.seen, **self.meter.used(), "energy": self.meter.kind}
        checkpoint.save(self.workspace.checkpoints, self.seen, self._state(), facts, keep=milestone)
        self.save_s = time.monotonic() - begun

    def _interval(self) -> float:
        """Seconds between two checkpoints."""
        from cloudjob.diffusion import checkpoint

        return self.settings.checkpoint_s or checkpoint.interval(self.save_s, 3600 * self.settings.failure_h)

    def _resume(self) -> None:
        """Goes on from the newest readable checkpoint of this very training, which rank 0 finds."""
        from cloudjob.diffusion import checkpoint
        from cloudjob.hpc import distributed

        found = distributed.together(self._newest)
        path = distributed.gather(found and found[0])[0]
        if path is None:
            if self.settings.init_from:
                distributed.together(self._init_from)
            return
        state = distributed.together(lambda: found[1] if found else checkpoint.load(path))
        self.seen, (self.skipped, self.skipped_in_a_row) = state["seen"], state["skipped"]
        self.network.load_state_dict(state["model"])
        for width, average in self.averages.items():
            average.load_state_dict(state["averages"][width])
        self.chosen, self.calibration = state["chosen"], state["calibration"]
        self.step.optimizer.load_state_dict(state["optimizer"])
        self.workspace.say(f"train: goes on from {path.name}, {self.seen} of {self.total} samples seen")

    def _newest(self):
        """(path, state) of the checkpoint to go on from; None for a new training, and on all ranks but the first.

        A finished training of other settings, or one on other shards, is kept aside whole. ConfigError where an
        unfinished one would be lost to a change of the configuration, or is of a version with another network.
        """
        from cloudjob.diffusion import checkpoint

        if self.world.rank:
            return None
        checkpoint.sweep(self.workspace.checkpoints)
        found = checkpoint.load_newest(self.workspace.checkpoints)
        if found is None:
            return None
        path, state = found
        if state["key"] == self.key and not self.workspace.force:
            if self._fitting(state["model"]) != {*state["model"], *self.network.state_dict()}:
                raise ConfigError(
                    f"{path}: cloudjob {state['cloudjob_version']}, which wrote it, had another network. Go on with "
                    "that version; or start anew: with --force (it is kept aside), or in another --run-dir, from its "
                    f"weights with --init-from {path}"
                )
            return found
        changed = changes(state["config"], self.item.config)
        if changed and state["seen"] < state["total"] and not self.workspace.force:
            raise ConfigError(
                f"{path} is of an unfinished training ({state['seen']} of {state['total']} samples), set otherwise:\n"
                + "".join(f"  {change}\n" for change in changed)
                + "set these back to go on with it; or start anew: with --force (it is kept aside), or in another "
                f"--run-dir, from its weights with --init-from {path}"
            )
        why = "--force" if self.workspace.force else ", ".join(changed) or "other shards"
        self.workspace.say(f"train: starts anew ({why}); the earlier training is kept in {self._set_aside()}")
        return None

    def _set_aside(self) -> Path:
        """Its checkpoints with all that was written beside them."""
        folder, number = self.workspace.checkpoints.parent, 1
        while (target := folder.with_name(f"{folder.name}-before-{number}")).exists():
            number += 1
        return folder.rename(target)

    def _fitting(self, given: dict) -> set[str]:
        """The tensors of another network that are of the same name and shape in this one."""
        own = self.network.state_dict()
        return {name for name in own if name in given and given[name].shape == own[name].shape}

    def _init_from(self) -> None:
        """The weights of another training where they fit, and which did not."""
        from cloudjob.diffusion import checkpoint

        path = self.settings.init_from
        if not path.exists():
            raise InputError(f"train.init_from: {path} does not exist")
        state = checkpoint.load(path)
        given, own = state["averages"].get(state["chosen"], state["model"]), self.network.state_dict()
        fits = self._fitting(given)
        if not fits:
            raise ConfigError(f"train.init_from: no tensor of {path} fits this network ({self.settings.preset})")
        self.network.load_state_dict({name: given[name] for name in fits}, strict=False)
        for average in self.averages.values():
            average.load_state_dict(self.network.state_dict())
        self.workspace.say(f"train: starts from {path}: {len(fits)} of {len(own)} tensors taken")
        for name in sorted({*own, *given} - fits):
            here, there = (tuple(tensors[name].shape) if name in tensors else "none" for tensors in (own, given))
            self.workspace.say(f"train:   does not fit: {name}, here {here}, there {there}")

    def _look(self, number: int) -> dict:
        """The same `number` triplets of the training split each time, as tensors."""
        from cloudjob.diffusion.batch import to_tensors

        return to_tensors(self.shards.look(number)[1], self.world.device)

    def _averaged(self, width: str):
        """A network with the weights of this moving average, or those of now ("none")."""
        import copy

        network = copy.deepcopy(self.network).eval()
        if width != "none":
            self.averages[width].copy_to(network)
        return network

    def _choose_average(self) -> None:
        """At the end of training: the moving average with the lower loss on the held-out split, if it is to be chosen
        and there is one."""
        if self.settings.average != "auto" or not self.held_out.any:
            return
        losses = {width: self.held_out.loss(self._averaged(width), 128) for width in self.averages}
        self.chosen = min(losses, key=losses.get)
        found = ", ".join(f"{loss:.4f} at {width}" for width, loss in losses.items())
        self.workspace.say(f"train: held-out loss by width of the moving average: {found}; taken: {self.chosen}")

    # --- what one sees -----------------------------------------------------------------------------------------
    def _passed(self, shares: tuple[float, ...], seen: int | None = None) -> bool:
        """Whether the step just done, or the one to `seen` samples, passed one of these shares of the training."""
        seen = self.seen if seen is None else seen
        return any(seen - self.settings.batch_size < share * self.total <= seen for share in shares)

    def _log(self, norm) -> None:
        """A row of metrics of all ranks, which rank 0 writes, and one line of it."""
        row = self.meter.row()
        if self.world.rank:
            return
        where = {"step": self.seen // self.settings.batch_size, "seen": self.seen, "total": self.total}
        norm = float(norm)
        state = {"lr": self.rate(), "grad_norm": round(norm, 4) if math.isfinite(norm) else None}
        row = where | row | state | {"skipped": self.skipped}
        self._write("metrics", row)
        line = f"train: {row['seen']} of {row['total']} samples, loss {row['loss']:.4f}, lr {row['lr']:.2g}, "
        line += f"{row['samples_per_s']:.1f} samples/s, {row['data_wait_pct']:.1f} % waiting for data, "
        line += f"{row['watts']:.0f} W {row['energy']}"
        self.workspace.progress(row["seen"] / row["total"], line)

    def _write(self, kind: str, row: dict) -> None:
        """A row into train/<kind>.jsonl, and for TensorBoard."""
        from cloudjob.training import logs

        logs.append(getattr(self.workspace, kind), row)
        if self.board:
            self.board.add(kind, row)

    def _card(self, event: str, **facts) -> None:
        """What runs where, or what it used: a row of train/jobs.jsonl and a line."""
        from cloudjob.hpc import machine, slurm
        from cloudjob.training import logs

        nodes, devices = (sorted(set(names)) for names in zip(*self.places, strict=True))
        job, commit = slurm.job_id(), machine.commit()
        row = {"event": event, "time": round(time.time(), 3), "job": job, "seen": self.seen, "total": self.total}
        row |= {"nodes": nodes, "ranks": self.world.size, "devices": devices, "commit": commit, "config": self.key}
        logs.append(self.workspace.job_cards, row | facts | machine.describe())
        who = f"{self.world.size} rank{'s' if self.world.size > 1 else ''} on {', '.join(nodes)} ({', '.join(devices)})"
        code = f"cloudjob {__version__}" + (f" at {commit}" if commit else "")
        used = ", ".join(f"{name} {value}" for name, value in facts.items())
        self.workspace.say(f"train: {event}{f' of job {job}' if job else ''}: {who}, {code}, {used}")

    def _look_at_it(self) -> None:
        """What rank 0 looks at after a step when its time has come; what had to be saved is saved."""
        if self._passed(_LOOKS):
            self._diagnose()
        if self._passed(_VALIDATIONS):
            self._validate()

    def _diagnose(self) -> None:
        """Looks for what makes trainings fail; into train/checks.jsonl, warnings to the log."""
        from cloudjob.training import logs

        found = self.held_out.faults(self.network, share=self.seen / self.total)
        logs.append(self.workspace.checks, {"seen": self.seen, **found})
        for warning in found["warnings"]:
            self.workspace.say(f"train: WARNING: {warning}")

    def _validate(self) -> None:
        """Scores with the averaged weights into train/validation.jsonl, and a picture of the first triplets."""
        from cloudjob.sentinel2.render import encode_png

        row, picture = self.held_out.validate(self._averaged(self.chosen))
        if picture is not None:
            write_bytes(self.workspace.samples / f"seen-{self.seen:08d}.png", encode_png(picture))
        self._write("validation", {"seen": self.seen, **row})


def node_folder(text: str) -> Path:
    """The folder of this node that `train.local_dir` names, with its environment variables put in."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    if not expanded or "$" in expanded:
        raise ConfigError(f"train.local_dir = {text}: the variable is not set on this node; set it, or name a folder")
    folder = Path(expanded)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.local_dir = {text}: {folder} cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"train.local_dir = {text}: {folder} cannot be written to")
    return folder
