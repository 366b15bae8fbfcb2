"""A recipe: network, process and normalisation that belong together, as a configuration or checkpoint names them."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from cloudjob.diffusion import clouds, losses, networks
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import NOTEBOOK_2025, Conditions, Guess, Normalisation, channel_count
from cloudjob.diffusion.ddpm import Ddpm, ResidualDdpm
from cloudjob.diffusion.noise import Numbers
from cloudjob.diffusion.processes import Corrective, Regression, Residual, Terms, measure_drift, measure_spread
from cloudjob.diffusion.samplers import Noise
from cloudjob.errors import ConfigError

Process = Residual | Corrective | Regression | Ddpm
PROCESSES = {
    "corrective": Corrective,
    "residual": Residual,
    "regression": Regression,
    "ddpm": Ddpm,
    "ddpm-residual": ResidualDdpm,
}


@dataclass(frozen=True)
class Recipe:
    """What makes a model: `preset` names its network, `process` is the diffusion, `norm` the units it works in, and
    `first_guess` (one of FIRST_GUESSES) what it starts from."""

    preset: str
    process: Process
    norm: Normalisation
    first_guess: str = "surroundings"  # that of recipes which do not tell

    @classmethod
    def of(
        cls,
        preset: str,
        process: str,
        *,
        mean: list[float],
        std: list[float],
        first_guess: str = "surroundings",
        **options: Any,
    ) -> Self:
        """`process` is one of PROCESSES and `options` its fields; mean and std per band are those of the training
        split's reflectance. The network of the notebook of 2025 has the notebook's own scaling: its images are noise
        partly because of it."""
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        if process == "regression":
            plain.setdefault("spread", Residual.spread)
        if preset == "notebook-2025":  # which looks at no first guess
            return cls(preset, PROCESSES[process](**plain), NOTEBOOK_2025)
        return cls(preset, PROCESSES[process](**plain), Normalisation(tuple(mean), tuple(std)), first_guess)

    def facts(self) -> dict:
        """What `of` takes to make this recipe again, in plain values for a checkpoint."""
        name = next(name for name, kind in PROCESSES.items() if type(self.process) is kind)
        options = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.process).items()}
        plain = {"preset": self.preset, "mean": list(self.norm.mean), "std": list(self.norm.std)}
        return plain | {"process": name, "first_guess": self.first_guess} | options

    def measure(self, batch: Batch) -> Self:
        """With the spread (and drift) of the process as they are in this batch, which has a target."""
        if type(self.process) is Ddpm:
            return self
        clean, valid, conditions = self._clean(batch), batch.target_valid, self.conditions(batch)
        bare = self.conditions(batch.without_references())
        found: dict[str, Any] = {"spread": measure_spread(clean, conditions, bare, valid)}
        if isinstance(self.process, Residual) and self.process.alpha:
            found["drift"] = measure_drift(clean, conditions, valid, found["spread"])
        return replace(self, process=replace(self.process, **found))

    def conditions(self, batch: Batch, guess: Guess | None = None) -> Conditions:
        """What the batch tells; its first guess is costly."""
        return Conditions.of(batch, norm=self.norm, first_guess=self.first_guess, guess=guess)

    def _clean(self, batch: Batch) -> Tensor:
        """The normalised target (N, 4, H, W), 0 without data."""
        return self.norm.forward(batch.known_target).nan_to_num(0)

    def network(self) -> nn.Module:
        """Freshly initialised."""

        build = partial(networks.build, self.preset, condition_channels=channel_count(self.first_guess))
        first = build(deviation=getattr(self.process, "deviation", False))
        return networks.MeanAndDetail(first, build()) if isinstance(self.process, Corrective) else first

    def sampler(self, wanted: str) -> str:
        """`wanted`, one of SAMPLERS; "auto" is the one that suits the process."""
        return ("ancestral" if isinstance(self.process, Ddpm) else "euler") if wanted == "auto" else wanted

    def steps(self, wanted: int, sampler: str) -> int:
        """The sampling steps that are taken: one of a regression, all of a Ddpm's where they are ancestral."""
        if isinstance(self.process, Regression):
            return 1
        return self.process.timesteps if isinstance(self.process, Ddpm) and sampler == "ancestral" else wanted

    def sampling(self, sampler: str, steps: int) -> dict[str, Any]:
        """{"sampler", "steps"} that a configuration's come to. ConfigError where the process has no such sampler."""
        sampler = self.sampler(sampler)
        alpha = getattr(self.process, "alpha", 0)
        if sampler == "ancestral" and alpha:
            raise ConfigError(f"infer.sampler ancestral draws noise alone: alpha is {alpha:g} here, not 0")
        return {"sampler": sampler, "steps": self.steps(steps, sampler)}

    def terms(
        self,
        network: nn.Module,
        batch: Batch,
        *,
        seed: int,
        samples: Numbers,
        conditions: Conditions | None = None,
    ) -> list[Terms]:
        """What the process compares for these samples: `loss` without its weights and without random changes.
        `conditions` are those of the batch, where they are known."""
        conditions = self.conditions(batch) if conditions is None else conditions
        return self.process.loss_terms(network, self._clean(batch), conditions, seed=seed, indices=samples)

    def loss(
        self,
        network: nn.Module,
        batch: Batch,
        *,
        seed: int,
        samples: Numbers,
        clear_weight: float,
        drop_reference: float,
        drop_mask: float,
        synthetic_clouds: float,
        other_ground: float,
    ) -> Tensor:
        """Scalar loss of a batch with a target, and with donors where `synthetic_clouds` (a share of the samples, see
        `clouds.lay`) is not 0. What is random about a sample is a function of (seed, its number) alone."""
        key: dict[str, Any] = {"seed": seed, "samples": samples}
        batch = batch.turned(**key)
        if synthetic_clouds:  # else no draws of it in every step
            batch = clouds.lay(batch, share=synthetic_clouds, other_ground=other_ground, **key)
        told = batch.drop_references(drop_reference, **key).drop_mask(drop_mask, **key)
        terms = self.terms(network, told, **key)
        weights = losses.pixel_weights(batch.classes, batch.target_valid, clear_weight=clear_weight)
        total = weights.new_zeros(())
        for part in terms:
            total = total + losses.weighted_mse(part.prediction, part.target, weights * part.trusted)
            if part.log_deviation is not None:  # half of it is the logarithm of a Gaussian's likelihood
                total = total + 2 * (weights * part.weight * part.log_deviation).mean()
            if part.light is not None and batch.light is not None:
                total = total + losses.weighted_entropy(part.light, batch.light, weights)
        return total

    def told(self, network: nn.Module, batch: Batch, *, guess: Guess | None = None) -> Conditions:
        """What the batch tells, with all that the members of an ensemble have in common: the first guess, of more
        surroundings than the batch holds where that is given, and that of the process's regression where it has one."""
        conditions = self.conditions(batch, guess)
        if isinstance(self.process, Corrective):
            return self.process.guessed(network, conditions, limits=self._limits(batch.cloudy))
        return conditions

    def _limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The physical range, on the device of `like`."""
        low, high = self.norm.limits()
        return low.to(like.device), high.to(like.device)

    def draw(self, network: nn.Module, told: Conditions, *, noise: Noise, steps: int, sampler: str = "auto") -> Tensor:
        """A sample of the ground's reflectance (N, 4, H, W) from what `told` returned."""
        limits = None if self.preset == "notebook-2025" else self._limits(told.cloudy)
        sampling = self.sampling(sampler, steps)
        process: Any = self.process  # only a Ddpm may go without limits, and only it has the notebook's preset
        return self.norm.inverse(process.sample(network, told, noise=noise, limits=limits, **sampling))
