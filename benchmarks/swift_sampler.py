"""What Apple's own sampler makes of an 8-step student: its DPM-Solver++ against the grid the student was distilled on.

    python -m benchmarks.swift_sampler --json benchmarks/results/swift_sampler.json
    python -m benchmarks.swift_sampler --store .snapfusion/store --run 1795251884195849

Both draw the same captions from the same noise, in torch; the reference is 50 DDIM steps of the v UNet. Apple's
sampler is restated here from its documented behaviour, see `dpm_of_apple`.
"""

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from artifacts_schema.base import Interval
from artifacts_schema.config import ComputeConfig, DataConfig
from artifacts_schema.report import RunReport
from benchmarks.published import ROOT, Metric, publish, result
from steps.data.prepared import PreparedData, prepare_data
from steps.diffusion.parameterization import x_from_v
from steps.diffusion.prediction import UNetInput, predict_guided
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import interval, kernel_block_means
from steps.evaluation.features import load_features
from steps.files.progress import TerminalProgress
from steps.inputs.context import configure_torch, quiet_libraries
from steps.models.base import load_base
from steps.models.clip import ClipScorer
from steps.models.stored import load_model
from steps.report.stored import record_of
from steps.store import LocalStore
from steps.training.randomness import epoch_indices, keyed_normal, spawn

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
    """Per picture: latents (n, c, h, w), pictures uint8, CLIP score; kernel distance per block."""

    latents: Tensor
    pictures: Tensor
    clip: NDArray[np.float64]
    blocks: NDArray[np.float64]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base", help="diffusers folder")
    parser.add_argument(
        "--velocity", type=Path, default=ROOT / "assets/warm_starts/velocity", help="v UNet folder"
    )
    parser.add_argument("--clip", type=Path, default=ROOT / "assets/evaluators/openclip_measure")
    parser.add_argument("--store", type=Path, default=ROOT / ".snapfusion/store", help="of --run")
    parser.add_argument("--run", help="run id; its 8-step student. Without it, the v UNet itself")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--reference-steps", type=int, default=50, help="of the v UNet; 0: no reference")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Comparison:
    """Captions, noise and evaluators that every sampler shares."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.base = load_base(options.base)
        self.schedule = NoiseSchedule.from_config(self.base.scheduler_config)
        store = LocalStore(folder / "store")
        config = DataConfig(limit=options.pictures)
        ref = prepare_data(self.base, config, store, progress=TerminalProgress(), project_root=ROOT)
        self.data = PreparedData.load(store, ref)
        size = self.data.size("test")
        count = min(options.pictures, size)
        self.indices = epoch_indices(samples=size, start=0, count=count, seed=options.seed)
        captions = self.data.captions("test")
        self.captions = [captions[index] for index in self.indices.tolist()]
        self.noise = keyed_normal(
            self.base.latent_shape,
            seed=options.seed,
            name="swift sampler",
            iteration=0,
            indices=torch.arange(count),
        )
        self.clip = ClipScorer.load(options.clip)
        self.features = load_features("efficientnet_lite0")
        self.real = self.features(self.data.images("test", torch.arange(size))).numpy()

    def velocity(self) -> Any:
        """The v UNet."""
        return UNet2DConditionModel.from_pretrained(
            self.options.velocity, use_safetensors=True, local_files_only=True
        ).float()

    def student(self) -> Any:
        """What is sampled in few steps."""
        if not self.options.run:
            return self.velocity()
        store = LocalStore(self.options.store)
        text = store.get_document(f"reports/{self.options.run}")
        if text is None:
            raise SystemExit(f"run {self.options.run} has no report in the store {self.options.store}")
        return load_model(store, record_of(store, RunReport.from_json(text), "student_8").weights)

    def grid(self, unet: Any, steps: int) -> Tensor:
        """DDIM on our grid."""
        return sample_latents(
            unet,
            self.schedule,
            noise=self.noise,
            embeddings=self.data.embeddings("test", self.indices),
            empty_embedding=self.data.empty_embedding,
            steps=steps,
            guidance_scale=self.options.guidance,
            prediction_type="v_prediction",
        )

    @torch.no_grad()
    def apple(self, unet: Any, steps: int) -> Tensor:
        """Apple's DPM-Solver++ on the noise made of the velocity."""
        embeddings = self.data.embeddings("test", self.indices)

        def denoise(z: Tensor, t: int) -> Tensor:
            now = torch.full((len(z),), t)
            output = predict_guided(
                unet,
                UNetInput(z, now, embeddings),
                empty_embedding=self.data.empty_embedding,
                w=self.options.guidance,
            )
            alpha, sigma = self.schedule.alpha(now), self.schedule.sigma(now)
            return x_from_v(z=z, v=output, alpha=alpha, sigma=sigma)

        return dpm_of_apple(denoise, self.schedule, self.noise, steps)

    def judge(self, latents: Tensor) -> Drawn:
        """Pictures and their scores."""
        pictures = decode_latents(self.base.vae, latents, scaling_factor=self.base.scaling_factor)
        blocks = kernel_block_means(
            self.features(pictures).numpy(), self.real, seed=spawn(self.options.seed, "blocks")
        )
        scores = self.clip.scores(pictures, self.captions).double().numpy()
        return Drawn(latents, pictures, scores, np.asarray(blocks))


def metrics(grid: Drawn, apple: Drawn, reference: Drawn | None) -> list[Metric]:
    """Each sampler's numbers, and their paired differences (Apple's minus ours), with 95 % intervals."""
    n = len(grid.clip)
    rows = [
        _metric("difference.latent_mse", _errors(apple.latents, grid.latents), n),
        _metric("difference.picture_psnr_db", _psnr(apple.pictures, grid.pictures), n, "dB"),
        _metric("difference.clip", apple.clip - grid.clip, n, "cosine", "Apple's sampler less our grid"),
        _metric("difference.kernel_distance", apple.blocks - grid.blocks, n, "", "above 0: ours is nearer"),
    ]
    drawn = {"grid": grid, "apple_dpm": apple} | ({"reference": reference} if reference else {})
    for name, item in drawn.items():
        rows.append(_metric(f"{name}.clip", item.clip, n, "cosine"))
        rows.append(_metric(f"{name}.kernel_distance", item.blocks, n))
        if reference is not None and item is not reference:
            errors = _errors(item.latents, reference.latents)
            rows.append(_metric(f"{name}.latent_mse_to_reference", errors, n))
    if reference is not None:
        more = _errors(apple.latents, reference.latents) - _errors(grid.latents, reference.latents)
        rows.append(_metric("difference.latent_mse_to_reference", more, n, "", "above 0: ours is nearer"))
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


def _metric(
    name: str, values: Sequence[float] | NDArray[np.float64], n: int, unit: str = "", note: str = ""
) -> Metric:
    found: Interval = interval([float(value) for value in values])
    return Metric(f"swift_sampler.{name}", found.value, unit, n, found.low, found.high, note)


def main() -> None:
    """Draw, judge, publish."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = arguments()
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads))
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(options, Path(folder))
        student = comparison.student()
        grid = comparison.judge(comparison.grid(student, options.steps))
        apple = comparison.judge(comparison.apple(student, options.steps))
        reference = None
        if options.reference_steps:
            reference = comparison.judge(comparison.grid(comparison.velocity(), options.reference_steps))
    rows = metrics(grid, apple, reference)
    publish(result(rows, module="benchmarks.swift_sampler", seed=options.seed), options.json)


if __name__ == "__main__":
    main()
