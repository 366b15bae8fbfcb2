"""What a training leaves behind, opened to restore with."""

from pathlib import Path

from torch import nn

from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import CorruptFileError
from cloudjob.diffusion import checkpoint


def open_checkpoint(path: Path, device) -> tuple[Recipe, nn.Module, dict]:
    """(recipe, network with the weights that were chosen, calibration of its ensembles, {} without) of a checkpoint.
    CorruptFileError where it is damaged, or of another version."""
    state = checkpoint.load(path)
    try:
        return *Recipe.load(state, device), state["calibration"]
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptFileError(path, f"is not a checkpoint of this version ({reason})") from error
