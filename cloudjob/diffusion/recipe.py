"""A recipe: network, process and normalisation that belong together, as a configuration or checkpoint names them."""

from dataclasses import asdict, dataclass, replace

from torch import Tensor, nn

from cloudjob.diffusion import clouds, losses, networks
from cloudjob.diffusion.conditions import CONDITION_CHANNELS, Conditions, NOTEBOOK_2025, Normalisation
from cloudjob.diffusion.batch import turn
from cloudjob.diffusion.ddpm import Ddpm
from cloudjob.diffusion.processes import Corrective, Regression, Residual, Terms, measure_drift, measure_spread
from cloudjob.diffusion.samplers import Noise
from cloudjob.errors import ConfigError

Process = Residual | Corrective | Regression | Ddpm
PROCESSES = {"corrective": Corrective, "residual": Residual, "regression": Regression, "ddpm": Ddpm}
_TURNED = ("cloudy", "clear", "reference", "mask", "donor")


@dataclass(frozen=True)
class Recipe:
    preset: str
    process: Process
    norm: Normalisation

    @classmethod
    def of(cls, preset: str, process: str, *, mean: list[float], std: list[float], **options) -> "Recipe":
        """`process` is one of PROCESSES and `options` its fields; mean and std per band are those of the training
        split's reflectance. The network of the notebook of 2025 has the notebook's own scaling: its images are noise
        partly because of it."""
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        if process == "regression":
            plain.setdefault("spread", Residual.spread)
        norm = NOTEBOOK_2025 if preset == "notebook-2025" else Normalisation(tuple(mean), tuple(std))
        return cls(preset, PROCESSES[process](**plain), norm)

    @classmethod
    def load(cls, state: dict, device) -> tuple["Recipe", nn.Module]:
        """Recipe and network of a checkpoint, ready to restore: the weights that were chosen after training."""
        recipe = cls.of(**state["recipe"])
        network = recipe.network().to(device).eval()
        network.load_state_dict(state["averages"].get(state["chosen"], state["model"]))
        return recipe, network

    def facts(self) -> dict:
        """What `of` takes to make this recipe again, in plain values for a checkpoint."""
        name = next(name for name, kind in PROCESSES.items() if type(self.process) is kind)
        options = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.process).items()}
        plain = {"preset": self.preset, "mean": list(self.norm.mean), "std": list(self.norm.std)}
        return plain | {"process": name} | options

    def measure(self, batch: dict[str, Tensor]) -> "Recipe":
        """With the spread (and drift) of the process as they are in this batch (see `loss` for its arrays)."""
        if isinstance(self.process, Ddpm):
            return self
        clean, valid, conditions = self._parts(batch)
        found = {"spread": measure_spread(clean, conditions, valid)}
        if isinstance(self.process, Residual) and self.process.alpha:
            found["drift"] = measure_drift(clean, conditions, valid, found["spread"])
        return replace(self, process=replace(self.process, **found))

    def _parts(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Conditions]:
        """Normalised clear image, where it has data, and conditions."""
        clean = self.norm.forward(batch["clear"])
        return clean.nan_to_num(0), clean.isfinite().all(1, keepdim=True), Conditions.of(batch, norm=self.norm)

    def network(self) -> nn.Module:
        """Freshly initialised."""

        def build() -> nn.Module:
            return networks.build(self.preset, condition_channels=CONDITION_CHANNELS)

        return networks.MeanAndDetail(build(), build()) if isinstance(self.process, Corrective) else build()

    def sampler(self, wanted: str) -> str:
        """`wanted`, one of SAMPLERS; "auto" is the one that suits the process."""
        return ("ancestral" if isinstance(self.process, Ddpm) else "euler") if wanted == "auto" else wanted

    def steps(self, wanted: int, sampler: str) -> int:
        """The sampling steps that are taken: one of a regression, all of a Ddpm's where they are ancestral."""
        if isinstance(self.process, Regression):
            return 1
        return self.process.timesteps if isinstance(self.process, Ddpm) and sampler == "ancestral" else wanted

    def taken(self, sampler: str, steps: int) -> dict:
        """What a configuration's sampler and steps come to. ConfigError where the process has no such sampler."""
        sampler = self.sampler(sampler)
        if sampler == "ancestral" and getattr(self.process, "alpha", 0):
            raise ConfigError(f"infer.sampler ancestral draws noise alone: alpha is {self.process.alpha:g} here, not 0")
        return {"sampler": sampler, "steps": self.steps(steps, sampler)}

    def terms(
        self, network: nn.Module, batch: dict[str, Tensor], *, seed: int, samples: list[int], **drop: float
    ) -> tuple[list[Terms], Conditions, Tensor]:
        """(Terms of the process, conditions, where the clear image has data): `loss` without its weights."""
        clean, valid, conditions = self._parts(batch)
        conditions = conditions.drop_reference(drop.get("drop_reference", 0), seed=seed, indices=samples)
        seen = conditions.drop_mask(drop.get("drop_mask", 0), seed=seed, indices=samples)
        return self.process.loss_terms(network, clean, seen, seed=seed, indices=samples), conditions, valid

    def loss(
        self,
        network: nn.Module,
        batch: dict[str, Tensor],
        *,
        seed: int,
        samples: list[int],
        clear_weight: float,
        drop_reference: float,
        drop_mask: float,
        synthetic_clouds: float,
        other_ground: float,
    ) -> Tensor:
        """Scalar loss of a batch: cloudy, clear, reference (may lack) (N, 4, n, n) reflectance with NaN where there is
        none, mask and, for `synthetic_clouds` (a share of the samples, see `clouds.lay`), donor (N, n, n) classes; and
        the numbers of Conditions.of. What is random about a sample is a function of (seed, its number) alone."""
        turned = {name: turn(batch[name], seed=seed, indices=samples) for name in _TURNED if name in batch}
        batch = batch | turned
        if synthetic_clouds:
            laid = {"share": synthetic_clouds, "other_ground": other_ground}
            batch = clouds.lay(batch, **laid, seed=seed, samples=samples)
        drop = {"drop_reference": drop_reference, "drop_mask": drop_mask}
        terms, conditions, valid = self.terms(network, batch, seed=seed, samples=samples, **drop)
        weights = losses.pixel_weights(conditions.mask, valid, clear_weight=clear_weight)
        return sum(losses.weighted_mse(part.prediction, part.target, weights * part.weight) for part in terms)

    def restore(
        self,
        network: nn.Module,
        batch: dict[str, Tensor],
        *,
        noise: Noise,
        steps: int,
        sampler: str = "auto",
        margin: int = 0,
    ) -> Tensor:
        """A sample of the ground's reflectance (N, 4, H, W), given what Conditions.of takes.

        The images may be larger than what is restored, by `margin` pixels on each side: the surroundings of a tile.
        """
        conditions = Conditions.of(batch, norm=self.norm).within(margin)
        limits = None if self.preset == "notebook-2025" else self.norm.limits()
        taken = self.taken(sampler, steps)
        clean = self.process.sample(network, conditions, noise=noise, limits=limits, **taken)
        return self.norm.inverse(clean)
