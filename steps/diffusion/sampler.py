"""From noise to pictures: DDIM on our grid, DPM-Solver++ as the baseline, decoding."""

from typing import Literal

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from torch import Tensor, nn

from steps.diffusion.ddim import walk
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.prediction import UNetInput, predict, predict_guided
from steps.diffusion.schedule import NoiseSchedule
from steps.diffusion.text_once import text_projected_once
from steps.files.progress import Progress

Sampler = Literal["ddim", "dpm"]
Precision = Literal["fp32", "bf16"]
SAMPLED_AT_ONCE = 32
"""Guided, twice as many pass the UNet: 128 leave a CPU's cache (1.3 times as long a picture, embedded model, 2 cores)."""
DECODED_AT_ONCE = 8
"""On a CPU more leave its cache (32 take 1.2 times as long a picture), on a GPU its memory at 512 x 512."""


@torch.no_grad()
def sample_latents(  # noqa: PLR0913 - everything that decides the result, by name
    unet: nn.Module,
    schedule: NoiseSchedule,
    *,
    noise: Tensor,
    embeddings: Tensor,
    empty_embedding: Tensor,
    steps: int,
    guidance_scale: float,
    prediction_type: PredictionType,
    sampler: Sampler = "ddim",
    batch_size: int = SAMPLED_AT_ONCE,
    progress: Progress | None = None,
    precision: Precision = "fp32",
) -> Tensor:
    """Scaled latents (n, c, h, w), float32 on the CPU, from noise (n, c, h, w) and embeddings (n, tokens,
    width).

    `guidance_scale` 1 evaluates only the conditional branch, any other value both in one call. `batch_size`
    counts pictures. `progress`, if given, is updated with finished pictures; starting and closing it is the
    caller's.
    """
    device = next(unet.parameters()).device
    run = _Run(
        unet,
        schedule,
        empty_embedding.to(device),
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        precision=precision,
    )
    results = []
    for start in range(0, len(noise), batch_size):
        z = noise[start : start + batch_size].to(device, torch.float32)
        text = embeddings[start : start + batch_size].to(device)
        with text_projected_once(unet):
            result = run.ddim(z, text, steps) if sampler == "ddim" else run.dpm(z, text, steps)
        results.append(result.cpu())
        if progress is not None:
            progress.update(start + len(z))
    return torch.cat(results)


class _Run:
    """What stays the same over the batches of one call."""

    def __init__(
        self,
        unet: nn.Module,
        schedule: NoiseSchedule,
        empty_embedding: Tensor,
        *,
        guidance_scale: float,
        prediction_type: PredictionType,
        precision: Precision,
    ) -> None:
        self.unet, self.schedule, self.empty_embedding = unet, schedule, empty_embedding
        self.guidance_scale, self.prediction_type = guidance_scale, prediction_type
        self.autocast = precision == "bf16"

    def ddim(self, z: Tensor, embeddings: Tensor, steps: int) -> Tensor:
        """Deterministic DDIM from grid point to grid point, at last to the clean latent."""
        return walk(
            self.schedule,
            lambda z, t: self.predict(z, t, embeddings),
            z=z,
            points=self.schedule.grid_to_clean(steps),
            kind=self.prediction_type,
        )

    def dpm(self, z: Tensor, embeddings: Tensor, steps: int) -> Tensor:
        """DPM-Solver++ 2M of diffusers from the same first timestep, ending at zero noise."""
        scheduler = dpm_scheduler(self.schedule, self.prediction_type)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            output = self.predict(z, _timesteps(int(t), z), embeddings)
            z = scheduler.step(output, t, z, return_dict=False)[0]
        return z

    def predict(self, z: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """The (guided) network output, float32."""
        item = UNetInput(z, t, embeddings)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.autocast):
            if self.guidance_scale == 1.0:
                return predict(self.unet, item)
            return predict_guided(
                self.unet, item, empty_embedding=self.empty_embedding, w=self.guidance_scale
            )


def dpm_scheduler(schedule: NoiseSchedule, prediction_type: PredictionType) -> DPMSolverMultistepScheduler:
    """diffusers' DPM-Solver++ (second order, multistep) on the schedule, trailing timesteps, last step to
    zero noise.
    """
    powers = schedule.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=powers.dtype), powers[:-1]])
    return DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.train_timesteps,
        trained_betas=(1.0 - powers / before).float().tolist(),
        prediction_type=prediction_type,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )


@torch.no_grad()
def decode_latents(
    decoder: AutoencoderKL, latents: Tensor, *, scaling_factor: float, batch_size: int = DECODED_AT_ONCE
) -> Tensor:
    """Pictures uint8 (n, 3, height, width) on the CPU from scaled latents (n, c, h, w).

    `decoder` is anything with diffusers' `decode(z).sample` in [-1, 1]: an AutoencoderKL or a SmallDecoder.
    Rounds as StableDiffusionPipeline does.
    """
    device = next(decoder.parameters()).device
    results = []
    for start in range(0, len(latents), batch_size):
        z = latents[start : start + batch_size].to(device) / scaling_factor
        image = (decoder.decode(z).sample.float() / 2 + 0.5).clamp(0, 1)
        results.append((image * 255).round().to(torch.uint8).cpu())
    return torch.cat(results)


def _timesteps(t: int, z: Tensor) -> Tensor:
    return torch.full((len(z),), t, device=z.device)
