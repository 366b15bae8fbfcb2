"""What `import cloudjob` offers to programs: images restored as arrays, runs opened, checkpoints read."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from cloudjob.errors import ConfigError
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:  # heavy: who looks at a run does not wait for them
    import numpy as np
    import xarray

    from cloudjob.config.models import Config
    from cloudjob.config.source import Source
    from cloudjob.diffusion.checkpoint import Checkpoint
    from cloudjob.patches.dataset import Triplets

_Split = Literal["train", "val", "test"]


class Run(NamedTuple):
    """A run folder and its configuration; `source` knows where each value of it came from. Nothing is written to it."""

    config: "Config"
    folder: RunFolder
    source: "Source"

    def pairs(self, *, accepted: bool = True) -> list[dict[str, Any]]:
        """The pairs that are accepted, or all candidates: a dict each, as a line of pairs.jsonl has it.

        `cloudy`, `clear`, `reference`: names of products; `days`, `reference_days`: signed days from the cloudy date;
        `reasons`: why the rule rejected it; and the measures: fractions of one, degrees, reflectance. InputError while
        the stage pair, or of accepted ones review, has not run.
        """
        from cloudjob.run import decisions

        return decisions.accepted_pairs(self.folder) if accepted else self.folder.rows(self.folder.pairs, stage="pair")

    def triplets(self, split: _Split = "train") -> "Triplets":
        """The triplets of a split as a `torch.utils.data.Dataset`: surface reflectance (4, n, n) of the cloudy, the
        clear and another clear date, and the mask (n, n); see `cloudjob.patches.dataset.Triplets`.

        InputError while the stage shard has not run; ConfigError for another split.
        """
        from cloudjob.patches.dataset import Triplets

        if split not in get_args(_Split):
            raise ConfigError(f"there is no split {split}: {', '.join(get_args(_Split))}")
        return Triplets(self.folder.shards, self.folder.index(), split)

    def outputs(self) -> list[str]:
        """The names of the products that are restored, in their order."""
        return sorted(path.stem for path in self.folder.outputs.glob("[!.]*/[!.]*.h5"))

    def output(self, product: str) -> "xarray.Dataset":
        """A restored product, read when it is looked at (docs/outputs.md).

        `reflectance` (band, y, x): surface reflectance of B04, B03, B02, B08, NaN without data; `reconstructed` (y, x):
        0 observed, 1 reconstructed, 2 blended edge, 255 no data; `uncertainty` (band, y, x): standard deviation of
        reflectance, with more than one member; x and y in metres of `spatial_ref`. Where rioxarray is installed, `.rio`
        knows the place. InputError where there is no such output; ConfigError without xarray and h5netcdf.
        """
        path = self.folder.made_by(self.folder.output(product, ".h5"), "infer")
        try:
            import h5netcdf  # noqa: F401  # what xarray opens it with
            import xarray
        except ImportError as error:
            raise ConfigError(f"{error.name} is missing: pip install 'cloudjob[xarray]'") from None
        with suppress(ImportError):
            import rioxarray  # noqa: F401  # it adds .rio
        return xarray.open_dataset(path, engine="h5netcdf", decode_coords="all")


def open_run(config: str | Path, *, run_dir: str | Path | None = None, overrides: Sequence[str] = ()) -> Run:
    """The run that a YAML file describes, or that lies in a run folder (which holds its own config.yaml).

    `run_dir` is the folder (default: runs/<name of the YAML file>), `overrides` are as `--set` takes them:
    "train.lr=2e-4". Nothing is written. ConfigError names every mistake with its line.
    """
    from cloudjob.config import source

    path, root = Path(config), None if run_dir is None else Path(run_dir)
    if path.is_dir():
        if root and root.resolve() != path.resolve():
            raise ConfigError(f"{path} is a run folder itself: leave out --run-dir {root}")
        path, root = path / "config.yaml", path
        if not path.exists():
            raise ConfigError(f"{root} is no run folder: it holds no config.yaml. Name the YAML file of a run")
    elif not path.exists():
        raise ConfigError(f"{path}: no such file or run folder{_like(path)}")
    loaded, origin = source.load(path, overrides)
    folder = RunFolder(root or Path("runs") / path.stem)
    folder.patience = loaded.leases.patience
    return Run(loaded, folder, origin)


def _like(path: Path) -> str:
    """What somebody may have meant by a path that is not there: what lies beside it, and is called much like it."""
    import difflib

    place = next(above for above in (path.parent, *path.parent.parents, Path()) if above.is_dir())
    missing = path.relative_to(place).parts[0]
    near = difflib.get_close_matches(missing, [each.name for each in place.iterdir()], n=1)
    return f"; did you mean {place / near[0]}?" if near else f" (the nearest folder that there is: {place.absolute()})"


def load_checkpoint(path: str | Path) -> "Checkpoint":
    """What a checkpoint holds: weights, recipe, bands, calibration and the state of the training; tensors on the CPU.

    CorruptFileError unless the file is whole; ConfigError where a newer cloudjob wrote it. No pickled code is run.
    """
    from cloudjob.diffusion import checkpoint

    return checkpoint.load(Path(path))


@dataclass(frozen=True)
class Restored:
    """An image without clouds: arrays, or xarray.DataArray with the coordinates of the image, if that was one."""

    reflectance: Any  # (4, H, W) float32; red, green, blue, near infrared; NaN without data. As given where observed
    reconstructed: Any  # (H, W) uint8: 0 observed, 1 reconstructed, 2 blended edge, 255 no data
    uncertainty: Any  # (4, H, W) float32 standard deviation of reflectance, 0 where observed; None with one member


def restore(
    image: Any,
    mask: Any,
    *,
    checkpoint: str | Path,
    clear: Any = (),
    mask_values: dict[str, list[int]] | str | None = None,
    grown: bool = False,
    scale: float = 1e-4,
    offset: float = 0.0,
    pixel_m: float = 10.0,
    sun_elevation: float | None = None,
    days: float | Sequence[float | None] | None = None,
    members: int = 1,
    seed: int = 0,
) -> Restored:
    """Restores the ground under the clouds of an image. Clear pixels come back as they were given.

    `image`: (4, H, W), the bands red, green, blue and near infrared in this order; a DataArray or Dataset of xarray
    may have more, if its `band` coordinate or variables name them (B04, B03, B02, B08, or red, green, blue, nir).
    Floating-point numbers are surface reflectance (0 to about 1), NaN without data; whole numbers are reflectance =
    value * `scale` + `offset`, 0 without data. Sentinel-2 of baseline 04.00 and later has offset -0.1.

    `mask`: (H, W), True where cloud or its shadow is, or classes: 0 clear, 1 cloud, 2 cloud shadow, 3 thin cirrus,
    4 unknown, 255 no data; `mask_values` says who made another ("omnicloudmask", "s2cloudless", ...) or which value is
    what ({"cloud": [1], "shadow": [3]}). Unless it is `grown` already, cloud grows by 100 m, shadow by 50 m and cirrus
    by 20 m; a pixel is `pixel_m` metres wide.

    `clear`: another date, or several, the most wanted first, each as the image and on its pixels; no data where it is
    not clear. They are brought to the light of the image; of more than three the first three are taken. `days` is how
    many days after the image it is (negative: before), a list of several, one each, or of the first alone;
    `sun_elevation` the sun's height on the image in degrees; None where it is not known.

    `members` above 1 draws so many likely grounds: the result is their mean, with their deviation. What is random
    depends on `seed` and on a pixel's row and column.

    `checkpoint`: the file of a trained network, or a run folder, whose newest is taken.

    ConfigError where shapes, values or bands do not fit; CorruptFileError for a damaged checkpoint.
    """
    from cloudjob.restoration import own_arrays

    given = own_arrays.Given.of(image, scale=scale, offset=offset)
    core = own_arrays.classes(mask, given.shape, mask_values)
    dates = own_arrays.dates(clear, given, scale=scale, offset=offset)
    conditions = own_arrays.conditions(
        given.dn,
        core,
        dates,
        grown=grown,
        pixel_m=pixel_m,
        sun_elevation=sun_elevation,
        days=own_arrays.days(days, len(dates)),
    )
    with tempfile.TemporaryDirectory(prefix="cloudjob-") as work:
        conditions.save(Path(work))
        reflectance, flags, spread = _restored(Path(work), Path(checkpoint), members, seed)
    values, deviation = given.put_back(reflectance, flags), own_arrays.deviation(spread)
    return Restored(given.like(values), given.like(flags), None if deviation is None else given.like(deviation))


def _restored(work: Path, path: Path, members: int, seed: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray | None]":
    """The scene whose conditions lie in a folder, by this process alone, with the settings of `cloudjob restore`."""
    import numpy as np
    import torch

    from cloudjob.config.models import of_members
    from cloudjob.hpc.mpi import Communicator
    from cloudjob.restoration import scene
    from cloudjob.restoration.crew import Crew
    from cloudjob.restoration.network import Model
    from cloudjob.restoration.trained import checkpoint_at

    found = checkpoint_at(path)
    settings = of_members(members, said=f"members = {members}")
    threads = torch.get_num_threads()

    def open_model(rank: int, local_rank: int) -> Model:
        return Model.open(found, local_rank=local_rank, seed=seed, sampler=settings.sampler, steps=settings.steps)

    try:
        crew = Crew(Communicator(), open_model, settings.tile, settings.overlap, settings.members)
        crew.restore(crew.team(work))
        reflectance, flags, spread = scene.restored(work)  # mapped from files that go
        return np.array(reflectance), np.array(flags), None if spread is None else np.array(spread)
    finally:
        torch.set_num_threads(threads)  # it is the caller's process
