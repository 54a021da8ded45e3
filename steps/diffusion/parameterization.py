"""Relations between a noisy latent and what a network may predict of it, with the paper's symbols.

z = alpha x + sigma eps and v = alpha eps - sigma x, alpha^2 + sigma^2 = 1 (SnapFusion, arXiv 2306.00980v3,
section 4; Salimans & Ho, arXiv 2202.00512, appendix D). All arguments are keyword-only. Latents have shape
(n, c, h, w), alpha and sigma (n, 1, 1, 1): one timestep per sample. z with two primes is written `z_end`, as
it ends the two teacher steps.
"""

from typing import Literal, NamedTuple

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


class Denoised(NamedTuple):
    """A network's view of a noisy latent: estimated clean latent and estimated noise."""

    x: Tensor
    eps: Tensor


def noisy(*, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z = alpha x + sigma eps."""
    _check(x, alpha, sigma)
    return alpha * x + sigma * eps


def v_from_x_eps(*, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x."""
    _check(x, alpha, sigma)
    return alpha * eps - sigma * x


def x_from_v(*, z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = alpha z - sigma v."""
    _check(z, alpha, sigma)
    return alpha * z - sigma * v


def eps_from_v(*, z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = sigma z + alpha v."""
    _check(z, alpha, sigma)
    return sigma * z + alpha * v


def x_from_eps(*, z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = (z - sigma eps) / alpha. Magnifies an error of eps by sigma / alpha."""
    _check(z, alpha, sigma)
    return (z - sigma * eps) / alpha


def v_from_eps(*, z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = (eps - sigma z) / alpha. Magnifies an error of eps by 1 / alpha."""
    _check(z, alpha, sigma)
    return (eps - sigma * z) / alpha


def denoised(
    *, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: PredictionType
) -> Denoised:
    """Clean latent and noise from a network's output of either prediction type."""
    if prediction_type == "v_prediction":
        return Denoised(
            x=x_from_v(z=z, v=output, alpha=alpha, sigma=sigma),
            eps=eps_from_v(z=z, v=output, alpha=alpha, sigma=sigma),
        )
    return Denoised(x=x_from_eps(z=z, eps=output, alpha=alpha, sigma=sigma), eps=output)


def guided(*, conditional: Tensor, unconditional: Tensor, w: Tensor | float) -> Tensor:
    """w conditional - (w - 1) unconditional, so that w = 1 is no guidance (eq. 10, diffusers'
    guidance_scale).

    `w` is one number or one per sample, shape (n, 1, 1, 1).
    """
    if isinstance(w, Tensor):
        _check(conditional, w)
    return w * conditional - (w - 1.0) * unconditional


def ddim_step(*, x: Tensor, eps: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Tensor:
    """One deterministic DDIM step to the next grid point: z' = alpha' x + sigma' eps (eq. 7)."""
    return noisy(x=x, eps=eps, alpha=alpha_next, sigma=sigma_next)


def inverted_target(
    *, z: Tensor, z_end: Tensor, alpha: Tensor, sigma: Tensor, alpha_end: Tensor, sigma_end: Tensor
) -> Tensor:
    """The x that takes one DDIM step from z to z'' (eq. 9): (z'' - (sigma''/sigma) z) / (alpha'' -
    (sigma''/sigma) alpha).
    """
    _check(z, alpha, sigma, alpha_end, sigma_end)
    ratio = sigma_end / sigma
    return (z_end - ratio * z) / (alpha_end - ratio * alpha)


def snr_weight(*, alpha: Tensor, sigma: Tensor) -> Tensor:
    """W = max(alpha^2 / sigma^2, 1), the truncated signal-to-noise ratio of eq. 9; shape of alpha."""
    return (alpha**2 / sigma**2).clamp(min=1.0)


def _check(latent: Tensor, *per_sample: Tensor) -> None:
    """A factor of another shape would broadcast silently over the wrong axis."""
    expected = (len(latent), 1, 1, 1)
    for factor in per_sample:
        if tuple(factor.shape) != expected:
            raise ValueError(f"expected one factor per sample, shape {expected}, found {tuple(factor.shape)}")
