"""A student that is told the guidance scale w instead of being guided (Meng et al., arXiv 2210.03142, stage 1 and 2)."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steps.diffusion.losses import DistillationLoss
from steps.diffusion.parameterization import snr_weight
from steps.diffusion.prediction import predict
from steps.training.batch import Batch
from steps.training.randomness import keyed_integers, keyed_uniform

_FREQUENCIES = 32
_HIGHEST = 14.0  # the largest w that is drawn, P section 4


class ConditionedUNet(nn.Module):
    """A UNet whose time embedding has that of w added; at the start, with weights 0, it is the UNet itself."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = copy.deepcopy(unet)
        inner = self.unet.time_embedding
        self.unet.time_embedding = _TimeAndGuidance(inner)

    def set_guidance(self, w: Tensor) -> None:
        """w (n,), or (1,) for every sample of the next call."""
        self.unet.time_embedding.w = w

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As the UNet's own."""
        return self.unet(*arguments, **named)


class _TimeAndGuidance(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.project = nn.Linear(2 * _FREQUENCIES, inner.linear_2.out_features)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.w = torch.ones(1)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding: Tensor = self.inner(sample, condition)
        told: Tensor = self.project(_waves(self.w.to(sample.device)).to(sample.dtype))
        return embedding + told


def _waves(w: Tensor) -> Tensor:
    """(n, 2 * frequencies) of w (n,)."""
    scale = torch.exp(torch.arange(_FREQUENCIES, device=w.device) * (-math.log(1000.0) / _FREQUENCIES))
    angles = w[:, None] / _HIGHEST * 1000.0 * scale
    return torch.cat([angles.sin(), angles.cos()], 1)


@dataclass(frozen=True)
class ConditionedLoss(DistillationLoss):
    """Every iteration: the guided teacher's target for a student that is told w, unguided."""

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The loss alone."""
        draws: dict[str, Any] = {"seed": batch.seed, "iteration": batch.iteration, "indices": batch.indices}
        point = keyed_integers(0, self.student_steps, name="distillation.point", **draws)
        w = keyed_uniform(*self.cfg_range, name="distillation.w", **draws).to(self.sampling.device)
        start = self.sampling.example(
            batch, name="distillation", t=self.student_grid[point], drop_captions=False
        )
        target = self.teacher_target(start, point, w.reshape(-1, 1, 1, 1))
        bare: Any = getattr(model, "module", model)
        bare.set_guidance(w)
        found = start.x_hat(predict(model, start.item))
        weight = snr_weight(alpha=start.alpha, sigma=start.sigma).flatten()
        return {"loss": (weight * (found - target).square().flatten(1).mean(1)).mean()}
