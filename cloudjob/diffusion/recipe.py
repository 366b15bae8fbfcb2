"""A recipe: network, process and normalisation that belong together, as a configuration or checkpoint names them."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from cloudjob.diffusion import clouds, losses, networks
from cloudjob.diffusion.conditions import CONDITION_CHANNELS, NOTEBOOK_2025, Conditions, Normalisation, turn
from cloudjob.diffusion.processes import Ddpm, Noise, Residual


@dataclass(frozen=True)
class Recipe:
    preset: str
    process: Residual | Ddpm
    norm: Normalisation

    @classmethod
    def of(cls, preset: str, process: str, *, mean: list[float], std: list[float], spread=None) -> "Recipe":
        """`process` is residual or ddpm; mean and std per band are those of the training split's reflectance.

        `spread` is that of the residual process, from `measure`. With ddpm the 2025 notebook's own scaling is used:
        its images are noise partly because of it.
        """
        if process == "ddpm":
            return cls(preset, Ddpm(), NOTEBOOK_2025)
        fitted = Residual(spread=tuple(spread)) if spread else Residual()
        return cls(preset, fitted, Normalisation(tuple(mean), tuple(std)))

    def facts(self) -> dict:
        """What `of` takes to make this recipe again, in plain values for a checkpoint."""
        plain = {"preset": self.preset, "mean": list(self.norm.mean), "std": list(self.norm.std)}
        if isinstance(self.process, Ddpm):
            return plain | {"process": "ddpm"}
        return plain | {"process": "residual", "spread": list(self.process.spread)}

    def measure(self, batch: dict[str, Tensor]) -> "Recipe":
        """With the residual's spread as it is in this batch (see `loss` for its arrays)."""
        if isinstance(self.process, Ddpm):
            return self
        clean, valid, conditions = self._parts(batch)
        return replace(self, process=Residual.measured(clean, conditions, valid))

    def _parts(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Conditions]:
        """Normalised clear image, where it has data, and conditions."""
        conditions = Conditions.of(batch["cloudy"], batch["mask"], batch.get("reference"), norm=self.norm)
        clean = self.norm.forward(batch["clear"])
        return clean.nan_to_num(0), clean.isfinite().all(1, keepdim=True), conditions

    def network(self) -> nn.Module:
        return networks.build(self.preset, condition_channels=CONDITION_CHANNELS)

    @property
    def sampler(self) -> str:
        return "euler" if isinstance(self.process, Residual) else "ancestral"

    def steps(self, wanted: int) -> int:
        """The sampling steps that are taken: ancestral sampling needs all of them."""
        return wanted if isinstance(self.process, Residual) else self.process.timesteps

    def loss(
        self,
        network: nn.Module,
        batch: dict[str, Tensor],
        *,
        seed: int,
        samples: list[int],
        clear_weight: float,
        drop_reference: float,
        synthetic_clouds: float,
    ) -> Tensor:
        """Scalar loss of a batch: cloudy, clear, reference (may lack) (N, 4, n, n) reflectance with NaN where there is
        none, mask and, for `synthetic_clouds` (a share of the samples, see `clouds.lay`), donor (N, n, n) classes.
        What is random about a sample is a function of (seed, its number) alone."""
        batch = {name: turn(value, seed=seed, indices=samples) for name, value in batch.items()}
        if synthetic_clouds:
            batch = clouds.lay(batch, share=synthetic_clouds, seed=seed, samples=samples)
        clean, valid, conditions = self._parts(batch)
        conditions = conditions.drop_reference(drop_reference, seed=seed, indices=samples)
        terms = self.process.loss_terms(network, clean, conditions, seed=seed, indices=samples)
        weights = losses.pixel_weights(conditions.mask, valid, clear_weight=clear_weight)
        return losses.weighted_mse(terms.prediction, terms.target, weights)

    def restore(
        self,
        network: nn.Module,
        cloudy: Tensor,
        mask: Tensor,
        reference: Tensor | None,
        *,
        noise: Noise,
        steps: int,
        margin: int = 0,
    ) -> Tensor:
        """A sample of the ground's reflectance (N, 4, H, W), given cloudy and reference ones and the mask (N, H, W).

        The images may be larger than what is restored, by `margin` pixels on each side: the surroundings of a tile.
        """
        conditions = Conditions.of(cloudy, mask, reference, norm=self.norm).within(margin)
        limits = None if isinstance(self.process, Ddpm) else self.norm.limits()
        clean = self.process.sample(network, conditions, noise=noise, steps=self.steps(steps), limits=limits)
        return self.norm.inverse(clean)
