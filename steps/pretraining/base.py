"""Training of the embedded eps-prediction UNet, and the base folder in diffusers' layout."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from artifacts_schema.pretraining import UNetConfig
from steps.data.prepared import PreparedData
from steps.diffusion.losses import Sampling
from steps.diffusion.parameterization import noisy
from steps.diffusion.schedule import NoiseSchedule
from steps.files.progress import Progress
from steps.pretraining.best import Best
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome
from steps.training.randomness import keyed_normal, keyed_uniform

SHARD = "16MB"
_EVALUATE_EVERY = 500
_MEASURED = 240
_TIMES = 4
_TOGETHER = 48
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
"""Stable Diffusion 1's scheduler configuration."""


def new_unet(
    config: UNetConfig, *, latent_size: int, latent_channels: int, text_width: int
) -> UNet2DConditionModel:
    """Random weights from the configuration's own seed; Stable Diffusion 1's topology."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=config.widths,
            layers_per_block=2,
            norm_num_groups=config.norm_groups,
            cross_attention_dim=text_width,
            attention_head_dim=config.heads,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )


def train_unet(
    config: UNetConfig,
    unet: UNet2DConditionModel,
    data: PreparedData,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
) -> tuple[TrainingOutcome, dict[str, float]]:
    """Plain eps prediction, some captions left out; the averaged state with the lowest validation L_ori is kept."""
    schedule = NoiseSchedule.from_config(SCHEDULER)
    best = Best(folder / "best", "validation_l_ori", highest=False)

    def evaluate(iteration: int, model: nn.Module) -> dict[str, float]:
        if iteration % _EVALUATE_EVERY:
            return {}
        row = {
            f"{split}_{name}": value
            for split in ("train", "validation")
            for name, value in held_out_losses(model, data, split, schedule).items()
        }
        best.offer(iteration, row[best.measure], model)
        return row

    outcome = train(
        unet,
        NoiseLoss(Sampling(data, schedule, config.caption_dropout, torch.device("cpu"))),
        training=config.training,
        samples=data.size("train"),
        seed=seed,
        folder=folder,
        progress=progress,
        on_interval=evaluate,
        description="unet",
    )
    return outcome, best.load(outcome.model)


@torch.no_grad()
def held_out_losses(
    model: nn.Module, data: PreparedData, split: str, schedule: NoiseSchedule
) -> dict[str, float]:
    """L_ori (error of the velocity) and error of eps, at the same pictures, noise and timesteps whenever called.

    Up to _MEASURED pictures spread over the split, each at _TIMES timesteps, one from every part of the schedule.
    """
    unet: Any = model
    pictures = torch.linspace(0, data.size(split) - 1, min(_MEASURED, data.size(split))).long()
    errors = {"l_ori": 0.0, "eps_mse": 0.0}
    for time in range(_TIMES):
        for part in pictures.split(_TOGETHER):
            keys: Any = {"seed": 0, "iteration": time, "indices": part}
            x = data.latents(split, part, seed=0, iteration=time)
            eps = keyed_normal(tuple(x.shape[1:]), name="held_out.noise", **keys)
            place = keyed_uniform(0.0, 1.0, name="held_out.timestep", **keys)
            t = ((time + place) / _TIMES * schedule.train_timesteps).long()
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            z = noisy(x=x, eps=eps, alpha=alpha, sigma=sigma)
            error = (unet(z, t, data.embeddings(split, part)).sample - eps).square().flatten(1).mean(1)
            errors["eps_mse"] += float(error.sum())
            # v = (eps - sigma z) / alpha, of the true and of the predicted eps
            errors["l_ori"] += float((error / alpha.flatten().square()).sum())
    return {name: value / (_TIMES * len(pictures)) for name, value in errors.items()}


class NoiseLoss:
    """|| eps_hat - eps ||^2 (Ho et al. 2020, equation 14)."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See steps.training.batch.LossFunction."""
        example = self.sampling.any_timestep(batch, name="base")
        unet: Any = model
        eps_hat = unet(example.item.z, example.item.t, example.item.embeddings).sample
        return {"loss": functional.mse_loss(eps_hat, example.eps)}


def write_base(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    half: bool = True,
) -> Path:
    """Write a StableDiffusionPipeline folder: safetensors, float16 unless told otherwise, shards of at most 16 MB.

    The text encoder stays float32: transformers loads what it finds, diffusers float32, and a plain `from_pretrained`
    would put the two together.
    """
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if half:
        unet.half()
        vae.half()
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=SHARD)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt
    pipeline.to(dtype=torch.float32)
    return folder
