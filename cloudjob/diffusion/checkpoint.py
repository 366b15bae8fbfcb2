"""Checkpoints: the one owner of their file names, keys, schema version and checksum; saving, loading, migration.

A file `step-NNNNNNNN.pt` is whole or absent, and is loaded without running pickled code. Its last line is the SHA-256
of all before it, so that any byte cut off or changed is noticed; torch.load and zip readers do not mind it. What was
measured on the way (time, energy) differs from run to run and lies beside it in step-NNNNNNNN.json: the bytes of a
checkpoint are those of its training alone.
"""

import contextlib
import hashlib
import json
import logging
import math
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import ConfigError, CorruptFileError, DiskFullError, InputError
from cloudjob.files import atomic, check_room, digest, is_disk_full, reading, write_json
from cloudjob.pixels import BANDS

log = logging.getLogger(__name__)

SCHEMA_VERSION = 4
KEPT = 2  # the newest checkpoints that are kept beside the milestones
_MARK = b"\nsha256 of the above: "
_TRAILER = len(_MARK) + 64 + 1
_WHOLE = "the older ones are whole, make room and run the command again"
_ROOM = 2**20  # bytes; all of a checkpoint but its tensors


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a training, and all that inference needs. Weights are name -> tensor, as in a `state_dict`.

    `key` says which training this is: the digest of its configuration and inputs, as its version of cloudjob had them.
    """

    seen: int  # samples
    total: int  # samples of the whole training
    skipped: list[int]  # steps without a finite loss or gradient: of the whole training, in a row
    model: dict[str, Tensor]
    averages: dict[str, dict[str, Tensor]]  # width of the moving average -> weights
    chosen: str  # the width that inference uses, or "none" for the weights of `model`
    calibration: dict[str, Any]  # of an ensemble's deviation (see scoring.ensembles); {} without
    optimizer: dict[str, Any]
    config: dict[str, Any]  # the settings that the result depends on
    recipe: dict[str, Any]  # what Recipe.of takes: network, process, normalisation
    bands: list[str]
    cloudjob_version: str
    key: str
    schema_version: int = SCHEMA_VERSION
    written_config: dict[str, Any] = field(default_factory=dict)  # as the file has it; never saved

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that were chosen for inference."""
        return self.averages.get(self.chosen, self.model)

    def is_of(self, config: dict[str, Any], inputs: dict[str, str]) -> bool:
        """Whether this is a checkpoint of the training of this configuration on these inputs."""
        return self.config == config and self.key == key(self.written_config or self.config, inputs)


def key(config: dict[str, Any], inputs: dict[str, str]) -> str:
    """The `key` of a training."""
    return digest([config, inputs])


# --- names -------------------------------------------------------------------------------------------------------
def file_name(seen: int) -> str:
    return f"step-{seen:08d}.pt"


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def newest(folder: Path) -> Path:
    """The newest checkpoint in a folder; InputError where there is none."""
    if not (found := saved(folder)):
        raise InputError(f"{folder} holds no checkpoint. Run: cloudjob train {folder.parents[1]}")
    return found[0]


def sweep(folder: Path) -> None:
    """Removes what a killed save has left. Only the process that saves here may do so."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)


# --- saving ------------------------------------------------------------------------------------------------------
def save(
    folder: Path,
    checkpoint: Checkpoint,
    facts: dict[str, Any] | None = None,
    *,
    keep: Callable[[int], bool] = lambda seen: False,
) -> Path:
    """Writes the checkpoint and `facts` beside it, then removes all but the newest two and those that are to be kept.

    `keep` tells by the samples seen. DiskFullError, before a byte is written where that can be known, leaves the others
    alone. torch.save gets an open file: given a path, it would put the temporary name into the archive's bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(checkpoint.seen)
    state = {each.name: getattr(checkpoint, each.name) for each in fields(checkpoint) if each.name != "written_config"}
    check_room(folder, _size(state) + _ROOM, "a checkpoint", _WHOLE)
    try:
        with atomic(path) as temporary, temporary.open("wb") as file:
            hashing: Any = _Hashing(file)
            torch.save(_canonical(state), hashing)
            file.write(_MARK + hashing.sha256.hexdigest().encode() + b"\n")
        if facts is not None:
            write_json(path.with_suffix(".json"), facts)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(f"{folder}: no space left for a checkpoint; {_WHOLE}") from error
        raise
    for old in saved(folder)[KEPT:]:
        if not keep(int(old.stem.removeprefix("step-"))):
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
    return path


class _Hashing:
    """A file for torch.save that sums up what is written to it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _size(value: Any) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _canonical(value: Any) -> Any:
    """The same containers built anew, equal strings made one: pickle writes identity, so that a resumed training would
    otherwise end in other bytes than one that was never stopped."""
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_canonical(item) for item in value)
    return sys.intern(value) if isinstance(value, str) else value


def interval(save_s: float, between_failures_s: float) -> float:
    """Seconds between saves that lose the least: what a save costs against what a failure costs (Young 1974, Daly 2006,
    first order)."""
    return math.sqrt(2 * save_s * between_failures_s)


# --- loading -----------------------------------------------------------------------------------------------------
def load(path: Path) -> Checkpoint:
    """The checkpoint, of this or an older schema version, its tensors on the CPU.

    CorruptFileError unless the file is whole and holds a checkpoint; ConfigError where a newer cloudjob wrote it.
    """
    state = _load(path)
    written = state.get("schema_version", 1)
    if written > SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: cloudjob {state.get('cloudjob_version')} wrote it, with schema version {written}; this one reads "
            f"versions up to {SCHEMA_VERSION}. Take that cloudjob, or a newer one"
        )
    try:
        return Checkpoint(**_migrated(state, written), written_config=state["config"])
    except (TypeError, KeyError) as error:
        raise CorruptFileError(path, f"is not a checkpoint ({error!r})") from None


def check_bands(path: Path, found: Checkpoint) -> None:
    """ConfigError where the network of a checkpoint is for other bands than these pixels have, or was never told their
    mean and deviation: it would take one band for another."""
    if found.bands != list(BANDS):
        raise ConfigError(
            f"{path}: a checkpoint for the bands {', '.join(found.bands) or '(none)'}; here they are "
            f"{', '.join(BANDS)}. Take one that was trained on these, in this order"
        )
    for name in ("mean", "std"):
        if len(found.recipe.get(name, BANDS)) != len(BANDS):
            raise ConfigError(
                f"{path}: a checkpoint with the {name} of {len(found.recipe[name])} bands in its normalisation; here "
                f"they are {len(BANDS)}: {', '.join(BANDS)}"
            )


def _load(path: Path) -> dict[str, Any]:
    """What the file holds; weights only, so a checkpoint cannot run code."""
    with reading(path, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError), path.open("rb") as file:
        size = max(path.stat().st_size - _TRAILER, 0)
        found = hashlib.sha256()
        block, left = memoryview(bytearray(min(size, 2**23))), size
        while left and (got := file.readinto(block[:left])):
            found.update(block[:got])
            left -= got
        if left or file.read() != _MARK + found.hexdigest().encode() + b"\n":
            raise CorruptFileError(path, "is no whole checkpoint: its checksum does not fit; copy it anew")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _migrated(state: dict[str, Any], version: int) -> dict[str, Any]:
    """The same state as this schema version has it."""
    fixed: dict[str, Any] = {"deviation": False}  # what was not written down yet
    if version < 3:
        fixed["first_guess"] = "surroundings"
    if version == 1:
        fixed |= {"betas": [0.9, 0.99], "weight_decay": 0.01}
    if version < SCHEMA_VERSION:
        train = fixed | state["config"].get("train", {})
        state = state | {"config": state["config"] | {"train": train}}
    return state | {"schema_version": SCHEMA_VERSION}


def load_newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that can be read, None where there is none; an unreadable one is renamed *.corrupt."""
    for path in saved(folder):
        try:
            return path, load(path)
        except CorruptFileError as error:
            if not path.exists():  # another rank has just set it aside
                continue
            log.warning("%s; set aside as *.corrupt, the one before is used", error)
            with contextlib.suppress(OSError):
                path.rename(path.with_name(path.name + ".corrupt"))
    return None


def open_network(path: Path, device: torch.device | str) -> tuple[Recipe, nn.Module, dict[str, Any]]:
    """(recipe, network with the weights that were chosen, calibration of its ensembles), ready to restore.

    CorruptFileError where the file is damaged, or holds another network than its recipe makes; ConfigError where it is
    for other bands.
    """
    found = load(path)
    check_bands(path, found)
    try:
        recipe = Recipe.of(**found.recipe)
        network = recipe.network()
        network.load_state_dict(found.weights)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptFileError(path, f"is not a checkpoint of this version ({reason})") from error
    return recipe, network.to(device).eval(), found.calibration


def facts(path: Path) -> dict[str, Any]:
    """What was noted beside a checkpoint; nothing where that cannot be read."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
