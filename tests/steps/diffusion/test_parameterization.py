"""The formulas against an independent derivation in float64 numpy, and their algebraic properties."""

import numpy as np
import pytest
import torch
from torch import Tensor

from steps.diffusion import parameterization as p

ANGLES = torch.tensor([0.05, 0.4, 0.9, 1.5], dtype=torch.float64)


@pytest.fixture
def factors() -> tuple[Tensor, Tensor]:
    return ANGLES.cos().reshape(-1, 1, 1, 1), ANGLES.sin().reshape(-1, 1, 1, 1)


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, eps = torch.randn(2, 4, 4, 3, 3, generator=generator, dtype=torch.float64)
    return x, eps


def test_velocity_is_the_derivative_of_z_along_the_circle(latents: tuple[Tensor, Tensor]) -> None:
    # z(angle) = cos(angle) x + sin(angle) eps, so that dz/dangle = v.
    x, eps = (part.numpy() for part in latents)
    angle, step = ANGLES.numpy().reshape(-1, 1, 1, 1), 1e-6

    def z(at: np.ndarray) -> np.ndarray:
        return np.cos(at) * x + np.sin(at) * eps

    derivative = (z(angle + step) - z(angle - step)) / (2 * step)
    v = p.v_from_x_eps(
        x=latents[0], eps=latents[1], alpha=torch.tensor(np.cos(angle)), sigma=torch.tensor(np.sin(angle))
    )
    np.testing.assert_allclose(v.numpy(), derivative, atol=1e-9)


def test_every_parameterization_round_trips(
    latents: tuple[Tensor, Tensor], factors: tuple[Tensor, Tensor]
) -> None:
    (x, eps), (alpha, sigma) = latents, factors
    z = p.noisy(x=x, eps=eps, alpha=alpha, sigma=sigma)
    v = p.v_from_x_eps(x=x, eps=eps, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(p.x_from_v(z=z, v=v, alpha=alpha, sigma=sigma), x)
    torch.testing.assert_close(p.eps_from_v(z=z, v=v, alpha=alpha, sigma=sigma), eps)
    torch.testing.assert_close(p.x_from_eps(z=z, eps=eps, alpha=alpha, sigma=sigma), x)
    torch.testing.assert_close(p.v_from_eps(z=z, eps=eps, alpha=alpha, sigma=sigma), v)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_denoised_recovers_both_parts(
    prediction_type: str, latents: tuple[Tensor, Tensor], factors: tuple[Tensor, Tensor]
) -> None:
    (x, eps), (alpha, sigma) = latents, factors
    z = p.noisy(x=x, eps=eps, alpha=alpha, sigma=sigma)
    output = eps if prediction_type == "epsilon" else p.v_from_x_eps(x=x, eps=eps, alpha=alpha, sigma=sigma)
    result = p.denoised(output=output, z=z, alpha=alpha, sigma=sigma, prediction_type=prediction_type)
    torch.testing.assert_close(result.x, x)
    torch.testing.assert_close(result.eps, eps)


def test_guidance_of_one_is_the_conditional_branch(latents: tuple[Tensor, Tensor]) -> None:
    conditional, unconditional = latents
    assert torch.equal(p.guided(conditional=conditional, unconditional=unconditional, w=1.0), conditional)


def test_guidance_takes_one_scale_per_sample(latents: tuple[Tensor, Tensor]) -> None:
    conditional, unconditional = latents
    w = torch.tensor([1.0, 2.0, 7.5, 14.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    result = p.guided(conditional=conditional, unconditional=unconditional, w=w)
    for i, scale in enumerate(w.flatten().tolist()):
        expected = unconditional[i] + scale * (conditional[i] - unconditional[i])
        torch.testing.assert_close(result[i], expected)


def test_guidance_refuses_scales_that_would_broadcast_over_the_wrong_axis() -> None:
    square = torch.zeros(4, 4, 4, 4)
    with pytest.raises(ValueError, match="one factor per sample"):
        p.guided(conditional=square, unconditional=square, w=torch.arange(4.0))


def test_inverted_target_reaches_the_teachers_end_in_one_step(
    latents: tuple[Tensor, Tensor], factors: tuple[Tensor, Tensor]
) -> None:
    (z, z_end), (alpha, sigma) = latents, factors
    alpha_end, sigma_end = (
        (ANGLES * 0.5).cos().reshape(-1, 1, 1, 1),
        (ANGLES * 0.5).sin().reshape(-1, 1, 1, 1),
    )
    target = p.inverted_target(
        z=z, z_end=z_end, alpha=alpha, sigma=sigma, alpha_end=alpha_end, sigma_end=sigma_end
    )
    eps = (z - alpha * target) / sigma
    torch.testing.assert_close(
        p.ddim_step(x=target, eps=eps, alpha_next=alpha_end, sigma_next=sigma_end), z_end
    )


def test_inverted_target_at_the_clean_latent_is_the_end_itself(
    latents: tuple[Tensor, Tensor], factors: tuple[Tensor, Tensor]
) -> None:
    (z, z_end), (alpha, sigma) = latents, factors
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    target = p.inverted_target(z=z, z_end=z_end, alpha=alpha, sigma=sigma, alpha_end=one, sigma_end=zero)
    torch.testing.assert_close(target, z_end)


def test_weight_is_the_signal_to_noise_ratio_truncated_at_one() -> None:
    alpha, sigma = ANGLES.cos().reshape(-1, 1, 1, 1), ANGLES.sin().reshape(-1, 1, 1, 1)
    weight = p.snr_weight(alpha=alpha, sigma=sigma).flatten().numpy()
    np.testing.assert_allclose(weight, np.maximum(1 / np.tan(ANGLES.numpy()) ** 2, 1.0))
    assert weight[-1] == 1.0
