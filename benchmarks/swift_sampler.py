"""What Apple's own sampler makes of an 8-step student: its DPM-Solver++ against the grid the student was distilled on.

    python -m benchmarks.swift_sampler --json benchmarks/results/swift_sampler.json
    python -m benchmarks.swift_sampler --store .snapfusion/store --run 1795251884195849

Both draw the same captions from the same noise, in torch; the reference is 50 DDIM steps of the v UNet. Apple's
sampler is restated here from its documented behaviour, see `dpm_of_apple`.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.published import Metric, publish, result
from benchmarks.setting import (
    TestCaptions,
    add_run,
    begin,
    parser_for,
    prepared,
    velocity_unet,
    weights_of_run,
)
from steps.diffusion.parameterization import x_from_v
from steps.diffusion.prediction import UNetInput, predict_guided
from steps.diffusion.sampler import sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import Estimate, clustered_mean
from steps.models.base import load_base
from steps.models.stored import load_model
from steps.store import LocalStore

_LOWER_ORDER_BELOW = 15  # steps; with fewer, the last two are of first order


def dpm_timesteps(steps: int, *, train_timesteps: int) -> list[int]:
    """Evenly from the last timestep down, halves away from zero: 999, 874, 749, 624, 500, 375, 250, 125."""
    return [math.floor((train_timesteps - 1) * k / steps + 0.5) for k in range(steps, 0, -1)]


def dpm_of_apple(
    denoise: Callable[[Tensor, int], Tensor], schedule: NoiseSchedule, z: Tensor, steps: int
) -> Tensor:
    """The latent that Apple's pipeline decodes: the clean latent estimated in the last of `steps` steps.

    DPM-Solver++ 2M (Lu et al. 2022, midpoint form) over `dpm_timesteps`; of first order in the first step and, with
    fewer than 15, in the last two. diffusers' solver of the same options differs in the last but one, which is of
    second order there. `denoise(z, t)` estimates the clean latent.
    """
    grid = dpm_timesteps(steps, train_timesteps=schedule.train_timesteps)
    before: tuple[Tensor, float] | None = None
    x = z
    for position, t in enumerate(grid):
        x = denoise(z, t)
        following = grid[position + 1] if position + 1 < steps else 0
        alpha_next, sigma_next, log_next = _at(schedule, following)
        _, sigma, log_now = _at(schedule, t)
        h = log_next - log_now
        direction = x
        late = steps < _LOWER_ORDER_BELOW and position >= steps - 2
        if before is not None and not late:
            last, log_before = before
            direction = x + 0.5 * h / (log_now - log_before) * (x - last)
        z = sigma_next / sigma * z - alpha_next * math.expm1(-h) * direction
        before = (x, log_now)
    return x


def _at(schedule: NoiseSchedule, t: int) -> tuple[float, float, float]:
    """alpha, sigma and log(alpha / sigma)."""
    now = torch.tensor([t])
    alpha, sigma = float(schedule.alpha(now)), float(schedule.sigma(now))
    return alpha, sigma, math.log(alpha) - math.log(sigma)


@dataclass(frozen=True)
class Drawn:
    """Per picture: latents (n, c, h, w), pictures uint8, CLIP score; kernel distance of all; the group of each."""

    latents: Tensor
    pictures: Tensor
    clip: NDArray[np.float64]
    distance: Estimate
    groups: Sequence[str]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_for(__doc__)
    add_run(parser, "its 8-step student. Without it, the v UNet itself")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--reference-steps", type=int, default=50, help="of the v UNet; 0: no reference")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Comparison:
    """Captions, noise and evaluators that every sampler shares."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.base = load_base(options.base)
        self.schedule = NoiseSchedule.from_config(self.base.scheduler_config)
        self.data = prepared(self.base, LocalStore(folder / "store"), options.pictures)
        count = min(options.pictures, self.data.size("test"))
        self.test = TestCaptions(self.base, self.data, options, noise="swift sampler", count=count)

    def student(self) -> nn.Module:
        """What is sampled in few steps."""
        if not self.options.run:
            return velocity_unet(self.options)
        store, (ref,) = weights_of_run(self.options, "student_8")
        student: nn.Module = load_model(store, ref)
        return student

    def grid(self, unet: nn.Module, steps: int) -> Tensor:
        """DDIM on our grid."""
        return sample_latents(
            unet,
            self.schedule,
            noise=self.test.noise,
            embeddings=self.test.embeddings,
            empty_embedding=self.data.empty_embedding,
            steps=steps,
            guidance_scale=self.options.guidance,
            prediction_type="v_prediction",
        )

    @torch.no_grad()
    def apple(self, unet: nn.Module, steps: int) -> Tensor:
        """Apple's DPM-Solver++ on the noise made of the velocity."""

        def denoise(z: Tensor, t: int) -> Tensor:
            now = torch.full((len(z),), t)
            output = predict_guided(
                unet,
                UNetInput(z, now, self.test.embeddings),
                empty_embedding=self.data.empty_embedding,
                w=self.options.guidance,
            )
            alpha, sigma = self.schedule.alpha(now), self.schedule.sigma(now)
            return x_from_v(z=z, v=output, alpha=alpha, sigma=sigma)

        return dpm_of_apple(denoise, self.schedule, self.test.noise, steps)

    def judge(self, latents: Tensor) -> Drawn:
        """Pictures and their scores."""
        return Drawn(latents, *self.test.judge(latents), self.test.groups)


def metrics(grid: Drawn, apple: Drawn, reference: Drawn | None) -> list[Metric]:
    """Each sampler's numbers, and their paired differences (Apple's minus ours), with 95 % intervals."""

    def mean(values: NDArray[np.float64]) -> Estimate:
        return clustered_mean(values, grid.groups)

    nearer = "above 0: ours is nearer"
    rows = [
        _metric("difference.latent_mse", mean(_errors(apple.latents, grid.latents))),
        _metric("difference.picture_psnr_db", mean(_psnr(apple.pictures, grid.pictures)), "dB"),
        _metric("difference.clip", mean(apple.clip - grid.clip), "cosine", "Apple's sampler less our grid"),
        _metric("difference.kernel_distance", apple.distance.minus(grid.distance), "", nearer),
    ]
    drawn = {"grid": grid, "apple_dpm": apple} | ({"reference": reference} if reference else {})
    for name, item in drawn.items():
        rows.append(_metric(f"{name}.clip", mean(item.clip), "cosine"))
        rows.append(_metric(f"{name}.kernel_distance", item.distance))
        if reference is not None and item is not reference:
            errors = _errors(item.latents, reference.latents)
            rows.append(_metric(f"{name}.latent_mse_to_reference", mean(errors)))
    if reference is not None:
        more = _errors(apple.latents, reference.latents) - _errors(grid.latents, reference.latents)
        rows.append(_metric("difference.latent_mse_to_reference", mean(more), "", nearer))
    return rows


def _errors(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Mean square difference per picture."""
    found: NDArray[np.float64] = (first - second).double().square().flatten(1).mean(1).numpy()
    return found


def _psnr(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """dB per picture, of bytes; equal pictures count as one grey level off."""
    errors = (first.double() - second.double()).square().flatten(1).mean(1).clamp_min(1.0)
    found: NDArray[np.float64] = (20 * math.log10(255) - 10 * errors.log10()).numpy()
    return found


def _metric(name: str, estimate: Estimate, unit: str = "", note: str = "") -> Metric:
    found = estimate.interval()
    return Metric(f"swift_sampler.{name}", found.value, unit, found.n, found.low, found.high, note)


def main() -> None:
    """Draw, judge, publish."""
    options = arguments()
    begin(options)
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(options, Path(folder))
        student = comparison.student()
        grid = comparison.judge(comparison.grid(student, options.steps))
        apple = comparison.judge(comparison.apple(student, options.steps))
        reference = None
        if options.reference_steps:
            reference = comparison.judge(comparison.grid(velocity_unet(options), options.reference_steps))
    rows = metrics(grid, apple, reference)
    publish(result(rows, module="benchmarks.swift_sampler", seed=options.seed), options.json)


if __name__ == "__main__":
    main()
