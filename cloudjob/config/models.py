"""What may be configured: one pydantic model per stage, each key with its default, its limits and what it means."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cloudjob.config.acquisition import CopernicusConfig, PublicConfig, SearchConfig
from cloudjob.config.archive import ArchiveConfig
from cloudjob.config.fields import (
    ConfiguredPath,
    Count,
    Fraction,
    Momentum,
    Section,
    Text,
    Tile,
    ascending,
)
from cloudjob.config.masks import MasksConfig
from cloudjob.errors import ConfigError
from cloudjob.leases import PATIENCE

Preset = Literal["notebook-2025", "tiny", "small", "base", "base-attention", "diffcr", "diffcr-32"]
PRESETS: tuple[str, ...] = get_args(Preset)


# Keys that are younger than some records: what those made stays valid.
NEWER: dict[str, dict] = {
    "search": {"exclude": []},
    "masks": {"b11": 60, "darker": 0.7},
    "pair": {"min_days": 0.0, "references": 1, "min_light": 0.5, "max_drift": None},
    "shard": {"unmeasured": "reject"},
    "infer": {"like_source": False, "unpaired": True},
    "evaluate": {"protocol": "own"},
}


def newer(*sections: str) -> dict[str, dict]:
    """Those of NEWER in these sections: what an item of them takes as its `newer`."""
    return {name: NEWER[name] for name in sections if name in NEWER}


class PairConfig(Section):
    """Rules for a cloudy product and a clear one of the same tile; fractions are of the masks, over the overlap."""

    min_days: float = Field(0, ge=0, description="a clear date nearer than this is none of another day")
    max_days: Count = Field(30, description="days at most between the cloudy date and the clear one")
    reference_max_days: Count = Field(60, description="the same for the references, other clear dates")
    references: int = Field(3, ge=1, le=3, description="other clear dates that the model is shown, at most")
    other_orbit_days: float = Field(3, ge=0, description="a date of another relative orbit counts as so much farther")
    min_overlap: Fraction = Field(0.5, description="area with data on both dates over the smaller area with data")
    clear_max_cloud: Fraction = Field(0.05, description="cloud, shadow and cirrus that the clear product may have")
    clear_max_unknown: Fraction = Field(
        0.10, description="pixels of the clear product that its masks or the other date call doubtful"
    )
    cloudy_range: tuple[Fraction, Fraction] = Field(
        (0.01, 0.9), description="cloud and cirrus that the cloudy product must have"
    )
    max_sun_difference: float = Field(15, description="degrees between the sun's heights on both dates")
    min_sun_elevation: float | dict[Literal["cloudy", "clear", "reference"], float] = Field(
        5.0, description="degrees, on both dates; or for each role, 5 for one that is not named"
    )
    min_light: Fraction = Field(0.5, description="brightness of the clear product over that of other dates")
    max_snow_difference: Fraction = Field(0.4, description="difference of snow cover on jointly clear pixels")
    max_drift: float | None = Field(
        None,
        gt=0,
        description="metres by which the ground may move between the dates, as sea ice does (land: below 20); a pair "
        "of which nobody can tell is rejected too; null: not asked",
    )

    _range = field_validator("cloudy_range")(lambda pair: ascending(pair, "the lower cloud fraction"))

    def of_cloudy(self) -> dict:
        """The rules that are about the cloudy date alone, as `decisions.unpaired` takes them."""
        suns = self.min_sun_elevation
        lowest = suns.get("cloudy", 5.0) if isinstance(suns, dict) else suns
        return {"cloudy_range": self.cloudy_range, "lowest_sun": lowest}


class ReviewConfig(Section):
    """How the pictures of the review page are made."""

    gain: Annotated[float, Field(gt=0)] = Field(
        1.0, description="picture = gain x reflectance; 1 for snow, 2.5 for land"
    )


class SplitConfig(Section):
    """What trains, validates and tests. Splits never share ground or an acquisition."""

    by: Literal["tile", "fold", "pair"] = Field(
        "tile", description="shares of tiles; one of `folds` groups of tiles; or one pair held out"
    )
    val_share: Fraction = Field(0.15, description="by tile: share of the tiles that validate")
    test_share: Fraction = Field(0.15, description="by tile: share of the tiles that are tested on")
    folds: Annotated[int, Field(ge=2)] = Field(5, description="by fold: how many groups of tiles there are")
    fold: Annotated[int, Field(ge=0)] = Field(0, description="the fold that is tested on; the next one validates")
    held_out: Text | None = Field(None, description="by pair: the pair that is tested on")
    test_tiles: list[Tile] = Field(
        [], description="tiles that are always tested on; the shares and folds are of the others"
    )

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold = {self.fold}: there are the folds 0 to {self.folds - 1}")
        if (self.by == "pair") != (self.held_out is not None):
            raise ValueError("by pair and held_out belong together: set both or neither")
        if self.by == "pair" and self.test_tiles:
            raise ValueError("by pair tests on held_out alone; leave test_tiles out, or split by tile or fold")
        return self


class ShardConfig(Section):
    """Which windows become triplets, and how they are stored."""

    preset: Literal["notebook-2025"] | None = Field(
        None,
        description="notebook-2025: its selection (cloud 5-30 %, nothing else asked) and masks, whatever is below, "
        "and whatever a person corrected",
    )
    window: Annotated[int, Field(ge=32, multiple_of=8)] = Field(256, description="rows and columns of a triplet")
    stride: Count = Field(64, description="pixels from one window to the next")
    cloud: tuple[Fraction, Fraction] = Field((0.05, 0.30), description="cloud and cirrus in a window")
    target_max_cloud: Fraction = Field(
        0.01, description="cloud, shadow, cirrus and unknown of the clear date in a window"
    )
    max_no_data: Fraction = Field(0.0, description="pixels of a window without data on either date")
    min_correlation: float | None = Field(
        0.5, ge=-1, le=1, description="of both dates on the jointly clear pixels of a window; null: not asked"
    )
    balance: int = Field(0, ge=0, le=100, description="bins of cloud fraction that are filled evenly; 0: as they come")
    max_per_pair: Count | None = Field(None, description="triplets of a pair, drawn at random where there are more")
    radiometry: Literal["line", "grid", "none"] = Field(
        "line",
        description="how clear dates are normalised to the cloudy one: a line per band, or one with offsets that vary",
    )
    min_r2: float | None = Field(
        0.5, le=1, description="of that line, lowest of the bands; a pair below is rejected; null: not asked"
    )
    max_shift: float = Field(
        1.0, gt=0, description="shift between the dates in pixels of 10 m; a pair above is rejected"
    )
    unmeasured: Literal["reject", "accept"] = Field(
        "reject", description="a pair whose R2 is asked for and cannot be measured, or whose shift in a large scene"
    )
    compression: Literal["none", "zstd", "gzip"] = Field(
        "none", description="of the shards; zstd needs the extra of this name, here and where they are read"
    )
    truth: Literal[True, False, "everywhere"] = Field(
        True,
        description="val and test: where the ground of the cloudy day is known, as below synthetic clouds, it is the "
        "target, and the pair's clear date is the reference; everywhere: in train too",
    )
    split: SplitConfig = SplitConfig()

    _cloud = field_validator("cloud")(lambda pair: ascending(pair, "the lower cloud fraction"))


class TrainConfig(Section):
    """What is trained, on what, how long, and by which optimizer."""

    preset: Preset = Field("small", description="the network; `cloudjob model PRESET` tells its size")
    process: Literal["corrective", "residual", "regression", "ddpm", "ddpm-residual"] = Field(
        "corrective",
        description="corrective: a regression, and diffusion on what it leaves, each with a network of the preset; "
        "residual: diffusion on the error of a first guess; regression: that error at once; ddpm: variance-preserving "
        "diffusion; ddpm-residual: the same on that error",
    )
    first_guess: Literal["similar", "surroundings"] = Field(
        "similar",
        description="what the process starts from. similar: what clear pixels tell that are near, and alike on the "
        "other dates; surroundings: the nearest other date, shifted to agree with what is clear around",
    )
    deviation: bool = Field(
        True,
        description="corrective, regression: the regression tells its own deviation, learns by likelihood, and keeps "
        "silent where it sees nothing of the ground",
    )
    alpha: float = Field(0.0, ge=0, le=10, description="residual: how strongly noise is drawn towards the cloudy image")
    prediction: Literal["noise", "x0", "v"] = Field("noise", description="ddpm: what the network puts out")
    schedule: Literal["linear", "cosine", "sigmoid"] = Field("linear", description="ddpm: of the noise")
    zero_terminal_snr: bool = Field(False, description="ddpm: no signal is left at the last noise level")
    epochs: Annotated[float, Field(gt=0)] = Field(50, description="passes over the triplets that train")
    samples: Count | None = Field(None, description="how many samples are trained on; default: those of the epochs")
    batch_size: Count = Field(32, description="samples of an optimizer step, of all ranks together")
    micro_batch: Count | None = Field(
        None, description="samples at most that a rank computes at once, for less memory; default: its share"
    )
    init_from: ConfiguredPath | None = Field(None, description="a checkpoint whose weights a new training starts from")
    lr: Annotated[float, Field(gt=0)] = Field(4e-4, description="AdamW: the highest learning rate")
    warmup: int = Field(1000, ge=0, description="samples over which the learning rate rises")
    decay: bool = Field(True, description="cosine decay of the learning rate to zero")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.99), description="AdamW: decay of the running means of the gradient and of its square, per step"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW: share of a weight, times lr, taken off per step")
    clear_weight: Annotated[float, Field(gt=0)] = Field(
        0.2, description="loss weight of clear pixels; cloud pixels have 1"
    )
    drop_reference: Fraction = Field(0.3, description="share of samples that must do without other dates")
    drop_mask: Fraction = Field(0.1, description="share of samples that must do without the mask")
    synthetic_clouds: Fraction = Field(
        0.0, description="share of samples whose clear date gets clouds of another triplet's shape: exact ground truth"
    )
    other_ground: Fraction = Field(
        0.25, description="share of these samples whose ground is darkened at random, as soil, plants and water are"
    )
    average: Literal["auto", "0.10", "0.05", "0.9999", "none"] = Field(
        "auto",
        description="relative width of the moving average of the weights; auto: the better one on val; 0.9999: an "
        "exponential one of this decay per step",
    )
    clip_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="norm that the gradient is cut down to")
    max_skipped: Count = Field(10, description="steps in a row without a finite loss and gradient that end it")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is fast")
    compile: bool | Literal["auto"] = Field("auto", description="whether torch compiles the network; auto: on a GPU")
    threads: Count | None = Field(
        None, description="CPU threads per rank; default: OMP_NUM_THREADS, or the cores of the task over its ranks"
    )
    loader_threads: Count = Field(2, description="threads that read the next batch")
    local_dir: Text | None = Field(
        None, description="node-local folder that the shards are copied to first, e.g. $SLURM_TMPDIR"
    )
    checkpoint_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds between checkpoints; default: what loses the least, from the time that a save takes"
    )
    failure_h: Annotated[float, Field(gt=0)] = Field(24.0, description="hours between two failures or preemptions")
    log_s: Annotated[float, Field(gt=0)] = Field(10, description="seconds between lines of metrics")
    tensorboard: bool = Field(False, description="metrics for TensorBoard too, in train/tensorboard/")
    grid_co2: float = Field(
        445.0, ge=0, description="grams of CO2 per kWh of the grid; this is about the world's average"
    )

    @field_validator("average", mode="before")
    @classmethod
    def _average(cls, value: object) -> object:
        """YAML reads 0.10 without quotes as a number."""
        return {0.1: "0.10", 0.05: "0.05", 0.9999: "0.9999"}.get(value, value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _process(self) -> Self:
        wrong, ddpm = [], self.process in ("ddpm", "ddpm-residual")
        if self.preset == "notebook-2025" and self.process != "ddpm":
            wrong.append("preset notebook-2025 needs process ddpm")
        if self.alpha and self.process != "residual":
            wrong.append("alpha belongs to process residual")
        if not ddpm and (self.prediction, self.schedule) != ("noise", "linear"):
            wrong.append("prediction and schedule belong to process ddpm")
        if self.zero_terminal_snr and (not ddpm or self.prediction == "noise"):
            wrong.append("zero_terminal_snr needs process ddpm with prediction x0 or v: pure noise tells nothing of x0")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def options(self) -> dict:
        """The fields of the process that `diffusion.recipe` makes."""
        names: dict[str, list[str]] = {
            "corrective": ["deviation"],
            "residual": ["alpha"],
            "regression": ["deviation"],
            "ddpm": ["prediction", "schedule", "zero_terminal_snr"],
            "ddpm-residual": ["prediction", "schedule", "zero_terminal_snr"],
        }
        return {name: getattr(self, name) for name in ("first_guess", *names[self.process])}


class InferConfig(Section):
    """How scenes are restored."""

    checkpoint: ConfiguredPath | None = Field(
        None, description="a checkpoint from elsewhere; default: the newest of this run"
    )
    tile: Annotated[int, Field(ge=32, multiple_of=8)] = Field(256, description="pixels a side of a tile of a scene")
    overlap: Annotated[int, Field(ge=0)] = Field(
        32, description="pixels that tiles have in common with their neighbours, over which they are blended"
    )
    sampler: Literal["auto", "euler", "heun", "dpm_solver_2m", "ancestral"] = Field(
        "auto", description="auto: euler, and ancestral for ddpm"
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(4, description="sampling steps; ancestral ddpm takes all 1000")
    members: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="ensemble members; above 1 the output has /uncertainty"
    )
    reference: Literal["other", "nearest", "none"] = Field(
        "other",
        description="clear dates that the model is shown, at most three: nearest is the best picture; other leaves "
        "the pair's own clear date out, so that there is something independent to score against",
    )
    unpaired: bool = Field(
        True, description="restore a cloudy product without an acceptable clear date too, from itself alone"
    )
    preview_gain: Annotated[float, Field(gt=0)] = Field(
        1.0, description="picture = gain x reflectance; 1 for snow, 2.5 for land"
    )
    like_source: bool = Field(
        False, description="also write the bands as JPEG 2000 in the folders of a SAFE product, as the source has them"
    )

    @model_validator(mode="after")
    def _overlap(self) -> Self:
        if 2 * self.overlap > self.tile:
            raise ValueError(f"overlap {self.overlap} is more than half of tile {self.tile}")
        return self


def of_members(members: int, *, said: str) -> InferConfig:
    """The defaults, but for so many members. ConfigError, which begins with what was `said`, where there are none."""
    try:
        return InferConfig(members=members)
    except ValueError:
        raise ConfigError(f"{said}: 1 to 64 are possible") from None


class EvaluateConfig(Section):
    """What is scored."""

    of: Literal["scenes", "triplets"] = Field(
        "scenes", description="what is scored: restored scenes, or the triplets of the held-out split"
    )
    triplets: Count = Field(400, description="how many of the triplets, evenly from all pairs")
    members: Annotated[int, Field(ge=0, le=64)] = Field(
        8, description="ensemble members of a triplet; 0: no model, only what learns nothing"
    )
    steps: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        [1], description="sampling steps that one member is scored with, beside infer.steps"
    )
    protocol: Literal["own", "sen12mscr"] = Field(
        "own", description="of triplets; sen12mscr: also as the tables published on SEN12MS-CR are made"
    )

    @model_validator(mode="after")
    def _of_triplets(self) -> Self:
        if self.protocol != "own" and self.of != "triplets":
            raise ValueError(f"protocol {self.protocol} is one of triplets: it needs of triplets")
        return self


class LeasesConfig(Section):
    """Who makes an item holds its lease; others wait, or take it over where its owner is lost."""

    patience: Annotated[float, Field(ge=1)] = Field(
        PATIENCE, description="seconds without a sign of life after which an owner on another machine counts as lost"
    )


class Config(Section):
    """Everything a run needs. The resolved configuration lies in the run folder as config.yaml."""

    seed: int = Field(0, description="of the split, the training and the noise: the same seed gives the same result")
    archive: ArchiveConfig | None = None
    public: PublicConfig | None = None
    copernicus: CopernicusConfig = CopernicusConfig()
    search: SearchConfig = Field(None, validate_default=True)  # type: ignore[assignment]  # None of public data alone
    masks: MasksConfig = MasksConfig()
    pair: PairConfig = PairConfig()
    review: ReviewConfig = ReviewConfig()
    shard: ShardConfig = ShardConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()
    evaluate: EvaluateConfig = Field(EvaluateConfig(), validate_default=True)
    leases: LeasesConfig = LeasesConfig()

    @field_validator("search", mode="wrap")
    @classmethod
    def _searched(cls, search: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> SearchConfig | None:
        if search is None and info.data.get("public"):
            return None
        if search is None and "public" in info.data:  # else that section is the mistake
            raise PydanticCustomError("missing", "Field required")
        return handler(search)

    @field_validator("evaluate")
    @classmethod
    def _without_scenes(cls, evaluate: EvaluateConfig, info: ValidationInfo) -> EvaluateConfig:
        if info.data.get("public") and evaluate.of == "scenes":
            raise ValueError("a public data set has no scenes: set evaluate.of to triplets")
        return evaluate

    @field_validator("infer")
    @classmethod
    def _sampler(cls, infer: InferConfig, info: ValidationInfo) -> InferConfig:
        train = info.data.get("train")
        if infer.sampler == "ancestral" and train and train.alpha and infer.checkpoint is None:
            raise ValueError("sampler ancestral draws noise alone: it needs train.alpha 0")
        return infer

    def section(self, *names: str) -> dict:
        """These sections and `seed` as plain values: what an item's record keeps."""
        return self.model_dump(mode="json", include={"seed", *names})
