"""Training of the embedded AutoencoderKL."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from artifacts_schema.pretraining import AutoencoderConfig
from steps.files.progress import Progress
from steps.pretraining.best import Best
from steps.pretraining.pictures import Pictures, normalised, shifted
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome
from steps.training.randomness import keyed_normal

LATENT_CHANNELS = 4
_EVALUATE_EVERY = 100
_MEASURED = 120  # validation pictures whose PSNR chooses
_SCALED_BY = 1024  # train pictures that the scaling factor is measured on


def new_autoencoder(config: AutoencoderConfig, *, image_size: int) -> AutoencoderKL:
    """Random weights from the configuration's own seed."""
    levels = len(config.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=LATENT_CHANNELS,
            sample_size=image_size,
            norm_num_groups=config.norm_groups,
            layers_per_block=1,
            block_out_channels=config.widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )


def train_autoencoder(
    config: AutoencoderConfig,
    train_set: Pictures,
    validation: Pictures,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
) -> tuple[TrainingOutcome, dict[str, float]]:
    """Train, keep the state with the best validation PSNR, scale the latents of the train split to unit variance."""
    best = Best(folder / "best", "psnr_db", highest=True)
    measured = validation.spread(_MEASURED).images
    outcome = train(
        new_autoencoder(config, image_size=train_set.images.shape[-1]),
        AutoencoderLoss(config, train_set),
        training=config.training,
        samples=len(train_set.captions),
        seed=seed,
        folder=folder,
        progress=progress,
        on_interval=best.watch(lambda model: psnr_db(model, measured), every=_EVALUATE_EVERY),
        description="autoencoder",
    )
    chosen = best.load(outcome.model)
    set_scaling_factor(outcome.model, train_set.spread(_SCALED_BY).images)
    return outcome, chosen


class AutoencoderLoss:
    """MSE and L1 of pictures in [-1, 1], L1 of their differences between neighbours, and a little KL."""

    def __init__(self, config: AutoencoderConfig, pictures: Pictures) -> None:
        self.config, self.pictures = config, pictures

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See steps.training.batch.LossFunction."""
        vae: Any = model
        x = shifted(normalised(self.pictures.images[batch.indices]), batch)
        posterior = vae.encode(x).latent_dist
        shape = tuple(posterior.mean.shape[1:])
        noise = keyed_normal(
            shape, seed=batch.seed, name="z", iteration=batch.iteration, indices=batch.indices
        )
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        mse, l1 = functional.mse_loss(y, x), (y - x).abs().mean()
        gradient = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-1, -2))
        config = self.config
        loss = mse + config.l1_weight * l1 + config.gradient_weight * gradient + config.kl_weight * kl
        return {"loss": loss, "mse": mse, "kl": kl}


@torch.no_grad()
def psnr_db(model: nn.Module, images: Tensor, batch_size: int = 64) -> float:
    """Mean PSNR (dB, peak 2) of uint8 pictures through encoder mean and decoder."""
    vae: Any = model
    values = []
    for start in range(0, len(images), batch_size):
        x = normalised(images[start : start + batch_size])
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4.0 / (x - y).square().mean((1, 2, 3))))
    return float(torch.cat(values).mean())


@torch.no_grad()
def set_scaling_factor(model: nn.Module, images: Tensor, batch_size: int = 64) -> None:
    """Write 1 / standard deviation of the sampled latents into the model's configuration."""
    vae: Any = model
    means, variances = [], []
    for start in range(0, len(images), batch_size):
        posterior = vae.encode(normalised(images[start : start + batch_size])).latent_dist
        means.append(posterior.mean)
        variances.append(posterior.std.square())
    variance = torch.cat(means).var() + torch.cat(variances).mean()
    vae.register_to_config(scaling_factor=float(variance.rsqrt()))
