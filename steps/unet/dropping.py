"""Training with units skipped at random (P eq. 5): what makes a UNet survive the removal of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn, tensor

from steps.diffusion.losses import Sampling
from steps.diffusion.prediction import predict
from steps.files.errors import ArchitectureError
from steps.training.batch import Batch
from steps.training.randomness import coin
from steps.unet.architecture import Unit, list_units
from steps.unet.evolved import EvolvedUNet
from steps.unet.matching import TeacherMatching


def drop_probability(iteration: int, *, final: float, ramp: float) -> float:
    """Probability at a 0-based iteration: linear from 0 to `final` over the first `ramp` iterations."""
    return final if iteration >= ramp else final * iteration / ramp


def draw_skipped(units: Sequence[Unit], probability: float, *, seed: int, iteration: int) -> list[str]:
    """Ids of the units that an iteration leaves out: one coin per unit, the same on every rank."""
    return [
        unit.id for unit in units if coin(probability, seed=seed, name=f"skip/{unit.id}", iteration=iteration)
    ]


@dataclass(frozen=True)
class SkippingLoss:
    """|v_hat - v|^2 of the UNet without a random choice of its units, one choice per iteration.

    `probability` is reached after `ramp` iterations. With `matching` a frozen teacher is matched as well.
    """

    sampling: Sampling
    probability: float
    ramp: float = 0.0
    matching: TeacherMatching | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named terms: loss, original (L_ori), the number of skipped units, and those of `matching`."""
        unet = _bare(model)
        probability = drop_probability(batch.iteration, final=self.probability, ramp=self.ramp)
        units = list_units(unet.spec, unet.geometry())
        skipped = draw_skipped(units, probability, seed=batch.seed, iteration=batch.iteration)
        example = self.sampling.any_timestep(batch, name="robust")
        unet.set_skipped(skipped)
        matched: dict[str, Tensor] = {}
        try:
            if self.matching is None:
                v_hat = predict(model, example.item)
            else:
                v_hat, matched = self.matching(model, example.item)
        finally:
            unet.set_skipped()
        original = (v_hat - example.v).square().mean()
        loss = original + matched.get("matching", 0.0)
        return {"loss": loss, "original": original, "skipped_units": tensor(float(len(skipped))), **matched}


def _bare(model: nn.Module) -> EvolvedUNet:
    """The UNet behind a data-parallel wrapper."""
    bare: Any = getattr(model, "module", model)
    if not isinstance(bare, EvolvedUNet):
        raise ArchitectureError(f"only an EvolvedUNet can skip units, found {type(bare).__name__}")
    return cast(EvolvedUNet, bare)
