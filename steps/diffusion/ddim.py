"""DDIM from grid point to grid point: the one step and the one walk of losses, sampler, scheduler and bundle check."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from steps.diffusion.parameterization import PredictionType, ddim_step, denoised
from steps.diffusion.schedule import NoiseSchedule

Network = Callable[[Tensor, Tensor], Tensor]
"""The (guided) output (n, c, h, w) for noisy latents z (n, c, h, w) at timesteps t (n,)."""


class Step(NamedTuple):
    """Where a step leads, z', and the clean latent x and noise eps that it was made of."""

    z: Tensor
    x: Tensor
    eps: Tensor


def step(
    schedule: NoiseSchedule, output: Tensor, *, z: Tensor, t: Tensor, t_next: Tensor, kind: PredictionType
) -> Step:
    """One deterministic step from timesteps t (n,) to t_next (n,) on a network's output for z (eq. 7)."""
    x, eps = denoised(
        output=output, z=z, alpha=schedule.alpha(t), sigma=schedule.sigma(t), prediction_type=kind
    )
    alpha_next, sigma_next = schedule.alpha(t_next), schedule.sigma(t_next)
    return Step(ddim_step(x=x, eps=eps, alpha_next=alpha_next, sigma_next=sigma_next), x, eps)


def walk(
    schedule: NoiseSchedule, network: Network, *, z: Tensor, points: Tensor, kind: PredictionType
) -> Tensor:
    """Latents (n, c, h, w) at the last of `points`, from z at the first one.

    `points` are timesteps (k + 1,) for k steps, or (k + 1, n) where every sample has its own. What the network
    predicts is of one `kind` at all of them.
    """
    for t, t_next in pairwise(points.to(z.device)):
        now, following = t.expand(len(z)), t_next.expand(len(z))
        z = step(schedule, network(z, now), z=z, t=now, t_next=following, kind=kind).z
    return z
