"""train: trains the network on the shards; its whole state follows from one integer, the samples seen."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cloudjob import __version__
from cloudjob.config import Config
from cloudjob.errors import ConfigError, InputError, InterruptedJob, ItemError
from cloudjob.workspace import Item, Summary, Workspace, digest, read_jsonl, write_bytes, write_jsonl

STAGE = "train"
_LOOKS = (0.05, 0.1, 0.25, 0.5, 1.0)  # shares of the training after which it is looked at for what makes it fail
_PACE = {"threads", "loader_threads", "local_dir", "checkpoint_s", "log_s"}  # how it is done, not what comes out


def items(config: Config, workspace: Workspace) -> list[Item]:
    if not workspace.shard_index.exists():
        raise InputError(f"{workspace.shard_index} is not there yet. Run: cloudjob shard {workspace.root}")
    index = json.loads(workspace.shard_index.read_text())
    settings = config.section("train")
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in _PACE}
    return [Item(STAGE, "run", settings, {"shards": digest(index)})]


def run(config: Config, workspace: Workspace) -> Summary:
    item = items(config, workspace)[0]
    index = json.loads(workspace.shard_index.read_text())
    workspace.require("shard", [entry["pair"] for entry in index["files"]], reader=STAGE)
    if not workspace.force and workspace.why(item) is None:
        return workspace.work(STAGE, [item], None)

    from cloudjob.hpc import distributed

    world = distributed.join(timeout_s=3600 if config.train.local_dir else 600)  # the copy may take its time
    try:
        if world.rank:
            Training(config, workspace, item, index, world).run()
            return Summary(STAGE, done=["run"])
        return workspace.work(STAGE, [item], lambda item: Training(config, workspace, item, index, world).run())
    finally:
        distributed.leave()


class Training:
    """One training on one rank. All but the wall clock is a function of (configuration, shards, samples seen)."""

    def __init__(self, config: Config, workspace: Workspace, item: Item, index: dict, world):
        import torch

        from cloudjob.diffusion.average import GAMMAS, PowerAverage
        from cloudjob.diffusion.recipe import Recipe
        from cloudjob.hpc import distributed

        self.config, self.workspace, self.world, self.settings = config, workspace, world, config.train
        self.item = item
        self.key = digest([item.config, item.inputs])
        self.shards, self.held_out = self._open(index)
        batch = self.settings.batch_size
        if batch % world.size:
            near = -(-batch // world.size) * world.size
            raise ConfigError(f"train.batch_size = {batch}: must be divisible by {world.size} ranks; try {near}")
        wanted = self.settings.samples or self.settings.epochs * len(self.shards)
        self.total = max(1, round(wanted / batch)) * batch
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(self.settings.threads or max(cores, 1))
        torch.manual_seed(config.seed)
        options = index["normalisation"] | self.settings.options()
        recipe = Recipe.of(self.settings.preset, self.settings.process, **options)
        self.recipe = recipe.measure(self._look(self.shards, 64)[1])
        self.network = self.recipe.network().to(world.device, memory_format=torch.channels_last)
        self.averages = {width: PowerAverage(self.network, gamma=gamma) for width, gamma in GAMMAS.items()}
        self.temperature = [1.0] * 4
        self.chosen = "0.10" if self.settings.average == "auto" else self.settings.average  # until the end of training
        fused = world.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=fused
        )
        choice = self.settings.precision
        self.low_precision = choice == "bfloat16" or (choice == "auto" and distributed.fast_bfloat16(world.device))
        self.seen = 0
        self._resume()
        self.parallel = distributed.wrap(self.network)

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
        from cloudjob.hpc import checkpoint, distributed

        meter, saved = Meter(self), time.monotonic()
        for samples, arrays in self._batches(meter):
            loss, norm = self._step(samples, arrays)
            self.seen += self.settings.batch_size
            for average in self.averages.values():
                average.update(self.network, step=self.seen / self.settings.batch_size)
            meter.note(loss, norm)
            if self._passed(_LOOKS) and self.world.rank == 0:
                self._diagnose()
            stop = distributed.agree(self.workspace.stop_requested())
            due = distributed.agree(time.monotonic() - saved > self.settings.checkpoint_s)
            if stop or due or self.seen >= self.total:
                if self.world.rank == 0:
                    if self.seen >= self.total:
                        self._choose_average()
                        self._calibrate()
                    checkpoint.save(self.workspace.checkpoints, self.seen, self._state())
                    self._picture()
                saved = time.monotonic()
                distributed.barrier()
            if stop and self.seen < self.total:
                raise InterruptedJob(
                    f"train: stopped at {self.seen} of {self.total} samples, saved; run the same command again"
                )
        if self.world.rank:
            return None
        path = self.workspace.newest_checkpoint()
        return [path], {"checkpoint": path.name, "seen": self.seen, "triplets": len(self.shards)}

    def _batches(self, meter) -> Iterator[tuple]:
        import numpy as np

        from cloudjob.patches import loader

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
            meter.waited += time.monotonic() - begun
            yield batch

    def _step(self, samples: list[int], arrays: dict):
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        batch = to_tensors(arrays, self.world.device)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.low_precision):
            loss = self.recipe.loss(
                self.parallel,
                batch,
                seed=self.config.seed,
                samples=samples,
                clear_weight=self.settings.clear_weight,
                drop_reference=self.settings.drop_reference,
                drop_mask=self.settings.drop_mask,
                synthetic_clouds=self.settings.synthetic_clouds,
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        if not torch.isfinite(norm):  # waits for the device: from here on the batch's buffers may be filled anew
            raise ItemError(f"train: the gradient is not finite at {self.seen} samples; lower train.lr")
        self.optimizer.step()
        return loss.detach(), norm

    def rate(self) -> float:
        """Learning rate: linear warm-up, then half a cosine to zero, both by samples seen."""
        rise = min(1.0, (self.seen + self.settings.batch_size) / max(self.settings.warmup, 1))
        fall = 0.5 + 0.5 * math.cos(math.pi * self.seen / self.total) if self.settings.decay else 1.0
        return self.settings.lr * rise * fall

    # --- state -------------------------------------------------------------------------------------------------
    def _state(self) -> dict:
        from cloudjob.sentinel2.radiometry import BANDS

        return {
            "seen": self.seen,
            "model": self.network.state_dict(),
            "averages": {width: average.state_dict() for width, average in self.averages.items()},
            "chosen": self.chosen,
            "temperature": self.temperature,
            "optimizer": self.optimizer.state_dict(),
            "config": self.item.config,
            "recipe": self.recipe.facts(),
            "bands": list(BANDS),
            "cloudjob_version": __version__,
            "key": self.key,
        }

    def _resume(self) -> None:
        """Goes on from the newest readable checkpoint of this very training; another training's are set aside whole."""
        from cloudjob.hpc import checkpoint, distributed

        found = checkpoint.load_newest(self.workspace.checkpoints)
        if found and (found[1]["key"] != self.key or self.workspace.force):
            distributed.barrier()
            if self.world.rank == 0:
                self.workspace.say(f"train: the checkpoints are of another configuration: kept in {self._set_aside()}")
            found = None
        distributed.barrier()
        if found is None:
            return
        path, state = found
        self.seen = state["seen"]
        self.network.load_state_dict(state["model"])
        for width, average in self.averages.items():
            average.load_state_dict(state["averages"][width])
        self.chosen, self.temperature = state["chosen"], state["temperature"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.workspace.say(f"train: goes on from {path.name}, {self.seen} of {self.total} samples seen")

    def _set_aside(self):
        folder, number = self.workspace.checkpoints.parent, 1
        while (target := folder.with_name(f"{folder.name}-before-{number}")).exists():
            number += 1
        return folder.rename(target)

    def _look(self, shards, number: int) -> tuple[dict, dict]:
        """The same `number` triplets each time, from all over the shards: as arrays and as tensors."""
        import numpy as np

        number = min(number, len(shards))
        triplets = [shards[place * len(shards) // number] for place in range(number)]
        arrays = {name: np.stack([triplet[name] for triplet in triplets]) for name in triplets[0]}
        return arrays, to_tensors(arrays, self.world.device)

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
        import torch

        if self.settings.average != "auto" or not len(self.held_out):
            return
        _, batch = self._look(self.held_out, 128)
        samples = list(range(len(batch["mask"])))
        losses = {}
        for width in self.averages:
            network, total = self._averaged(width), 0.0
            for first in range(0, len(samples), 16):
                part = {name: value[first : first + 16] for name, value in batch.items()}
                with torch.no_grad():
                    total += float(
                        self.recipe.loss(
                            network,
                            part,
                            seed=self.config.seed,
                            samples=samples[first : first + 16],
                            clear_weight=self.settings.clear_weight,
                            drop_reference=self.settings.drop_reference,
                            drop_mask=0,
                            synthetic_clouds=0,
                        )
                    ) * len(part["mask"])
            losses[width] = total / len(samples)
        self.chosen = min(losses, key=losses.get)
        found = ", ".join(f"{loss:.4f} at {width}" for width, loss in losses.items())
        self.workspace.say(f"train: held-out loss by width of the moving average: {found}; taken: {self.chosen}")

    def _calibrate(self) -> None:
        """At the end of training: what makes the interval of an ensemble right on the held-out split."""
        from cloudjob.diffusion.evaluation import Restorer

        settings, members = self.config.infer, self.config.evaluate.members
        if members < 2 or not len(self.held_out) or self.settings.process == "regression" or self._slow():
            return
        options = {"seed": self.config.seed, "sampler": settings.sampler, "steps": settings.steps}
        restorer = Restorer(self.recipe, self._averaged(self.chosen), **options)
        self.temperature = restorer.calibrate(self._look(self.held_out, 64)[1], members)

    def _slow(self) -> bool:
        """Whether a sample takes too many steps for a look in passing."""
        return self.recipe.steps(self.config.infer.steps, self.recipe.sampler(self.config.infer.sampler)) > 50

    # --- what one sees -----------------------------------------------------------------------------------------
    def _passed(self, shares: tuple[float, ...]) -> bool:
        """Whether the step just done passed one of these shares of the training."""
        before = self.seen - self.settings.batch_size
        return any(before < share * self.total <= self.seen for share in shares)

    def _diagnose(self) -> None:
        """Looks for what makes trainings fail, on held-out triplets; into train/checks.jsonl, warnings to the log."""
        from cloudjob.diffusion import diagnosis

        shards = self.held_out if len(self.held_out) else self.shards
        found = diagnosis.diagnose(self.recipe, self.network, self._look(shards, 16)[1], seed=self.config.seed)
        share = self.seen / self.total
        said = diagnosis.warnings(found, share=share)
        rows = [row for row in _metrics(self.workspace.checks) if row["seen"] < self.seen]
        write_jsonl(self.workspace.checks, [*rows, {"seen": self.seen, **found, "warnings": said}])
        for warning in said:
            self.workspace.say(f"train: WARNING: {warning}")

    def _picture(self) -> None:
        """Cloudy, reference, restored and clear of the first held-out triplets, with the chosen weights."""
        import numpy as np

        from cloudjob.diffusion import noise
        from cloudjob.sentinel2.radiometry import digital_number
        from cloudjob.sentinel2.render import encode_png, side_by_side, true_colour

        arrays, batch = self._look(self.held_out if len(self.held_out) else self.shards, 4)
        if self._slow():
            return
        sampler = self.config.infer.sampler
        network = self._averaged(self.chosen)

        def draw(step: int):
            shape = range(batch["cloudy"].shape[-1])
            field = noise.field(self.config.seed, rows=shape, cols=shape, bands=4, step=step, device=self.world.device)
            return field.expand_as(batch["cloudy"])

        restored = self.recipe.restore(network, batch, noise=draw, steps=self.config.infer.steps, sampler=sampler)
        arrays["restored"] = digital_number(restored.cpu().numpy())
        names = [name for name in ("cloudy", "reference", "restored", "clear") if name in arrays]
        gain = self.config.infer.preview_gain
        rows = [
            side_by_side([true_colour(image, gain=gain) for image in images])
            for images in zip(*(arrays[name] for name in names), strict=True)
        ]
        write_bytes(self.workspace.samples / f"seen-{self.seen:08d}.png", encode_png(np.concatenate(rows)))


class Meter:
    """Loss, speed and waiting since the last line of metrics.jsonl (rank 0 writes it)."""

    def __init__(self, training: Training):
        self.training, self.path = training, training.workspace.metrics
        self.rows = [row for row in _metrics(self.path) if row["seen"] <= training.seen]
        if training.world.rank == 0:
            write_jsonl(self.path, self.rows)
        self._restart()

    def _restart(self) -> None:
        self.begun, self.from_seen, self.waited, self.losses = time.monotonic(), self.training.seen, 0.0, []

    def note(self, loss, norm) -> None:
        training, elapsed = self.training, time.monotonic() - self.begun
        if training.world.rank:
            return
        self.losses.append(loss)
        if elapsed < training.settings.log_s and training.seen < training.total:
            return
        row = {
            "time": round(time.time(), 3),
            "step": training.seen // training.settings.batch_size,
            "seen": training.seen,
            "total": training.total,
            "loss": round(sum(float(loss) for loss in self.losses) / len(self.losses), 6),
            "lr": training.rate(),
            "grad_norm": round(float(norm), 4),
            "samples_per_s": round((training.seen - self.from_seen) / elapsed, 2),
            "data_wait_pct": round(100 * self.waited / elapsed, 2),
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        done, speed = f"{row['seen']} of {row['total']} samples", f"{row['samples_per_s']:.1f} samples/s"
        line = f"train: {done}, loss {row['loss']:.4f}, {speed}"
        training.workspace.progress(row["seen"] / row["total"], line)
        self._restart()


def _metrics(path) -> list[dict]:
    """The lines written so far; a last one cut short by a kill is left out."""
    if not path.exists():
        return []
    try:
        return read_jsonl(path)
    except json.JSONDecodeError:
        lines = path.read_text().splitlines()[:-1]
        return [json.loads(line) for line in lines]


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


def pinned(shape: tuple[int, ...], dtype):
    """An array in page-locked memory, which a GPU reads by itself."""
    import numpy as np
    import torch

    return torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name), pin_memory=True).numpy()


def to_tensors(arrays: dict, device) -> dict:
    """uint16 DN to float32 reflectance on the device, NaN where there is no data; masks as they are.

    On the CPU masks share the memory of their array; a GPU may still be reading when this returns.
    """
    import torch

    from cloudjob.sentinel2.radiometry import OFFSET, SCALE

    tensors = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array).to(device, non_blocking=True)
        if tensor.dtype == torch.uint16:
            dn = tensor.to(torch.float32)
            tensor = (dn * SCALE + OFFSET).masked_fill(dn == 0, torch.nan)
        tensors[name] = tensor
    if "clear_days" in tensors:  # the network is asked for the ground of the clear date
        tensors["target_days"] = tensors.pop("clear_days")
        tensors["reference_days"] = tensors["reference_days"] - tensors["target_days"]
    return tensors
