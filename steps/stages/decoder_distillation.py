"""`decoder_distillation`: a decoder of half the width (SnapFusion section 3.2 and supplement B.2).

The small decoder starts from the full one's channels of largest weight norm and learns, by the mean squared
error of the pictures, to decode latents that the base made from text.
"""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.distillation_configs import DecoderDistillationConfig
from artifacts_schema.training import TrainingRecord
from steps.diffusion.losses import LatentData
from steps.inputs.context import StageContext
from steps.inputs.latent_pool import LatentPool, PoolSettings, build_pool, decode_unclipped
from steps.inputs.loaded import StageInputs
from steps.latency.macs import count_macs
from steps.models.base import BaseModel
from steps.models.base_folder import folder_identity
from steps.models.stored import save_model
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.placement import sent
from steps.training.selection import held_out_loss
from steps.unet.small_decoder import SmallDecoder, with_decoder

__all__ = ["SmallDecoder", "run", "with_decoder"]
STAGE = "decoder_distillation"
SCHEMA = "snapfusion.SmallDecoder"
_HELD_OUT_SHARE = 8  # one in so many latents of the pool measures and is never trained on
_HELD_OUT_MOST = 64


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> TrainingRecord:
    """The stage, see `distil_decoder`."""
    return distil_decoder(inputs.base, inputs.data, config.decoder_distillation, context)


def distil_decoder(
    base: BaseModel, data: LatentData, config: DecoderDistillationConfig, context: StageContext
) -> TrainingRecord:
    """Train the small decoder. The record's metrics hold parameters, MACs, and PSNR against the full decoder
    in dB.

    `psnr_db` is measured on held-out synthetic latents, `psnr_real_db` on latents of validation pictures.
    """
    settings = PoolSettings(
        config.pool_size, config.ddim_steps, config.guidance_scale, config.training.precision
    )
    pool = build_pool(base, data, settings, context)
    small = first_decoder(base, config, context.seed).to(context.device)
    held_out = min(_HELD_OUT_MOST, max(1, len(pool) // _HELD_OUT_SHARE))
    training = len(pool) - held_out
    measure = pool.rows(torch.arange(training, len(pool)))
    start_psnr = psnr_db(small, *measure)
    loss = PictureLoss(pool, context.device)
    outcome = train(
        small,
        loss,
        training=config.training,
        samples=training,
        seed=context.seed,
        folder=context.checkpoints(),
        held_out=held_out_loss(
            "mean squared error of pictures of held-out latents",
            loss,
            held_out,
            seed=context.seed,
            first=training,
        ),
        progress=context.progress,
        description=STAGE,
        device=context.device,
        processes=context.processes,
    )
    parents = (folder_identity(base.path),)
    metrics = size_metrics(base, outcome.model) | {
        "psnr_start_db": start_psnr,
        "psnr_db": psnr_db(outcome.model, *measure),
        "held_out": float(held_out),
    }
    return TrainingRecord(
        stage=STAGE,
        parents=parents,
        config=config.meaning(),
        seed=context.seed,
        weights=save_model(context.store, outcome.model, schema=SCHEMA, parents=parents),
        iterations=outcome.iterations,
        batch_size=config.training.batch_size * config.training.accumulation,
        prediction_type=base.prediction_type,
        curve=tuple(outcome.curve),
        selection=outcome.selection,
        metrics=metrics | _real_psnr(base, data, outcome.model, context),
        images_per_s=outcome.images_per_s,
    )


def first_decoder(base: BaseModel, config: DecoderDistillationConfig, seed: int) -> Any:
    """The small decoder before training: cut out of the full one, or of random weights."""
    sliced = SmallDecoder.cut_from(base.vae, width_fraction=config.width_fraction)
    if config.start == "sliced":
        return sliced
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallDecoder.from_config(sliced.config)


class PictureLoss:
    """Mean squared error of the small decoder's pictures from the full decoder's, both in [-1, 1]."""

    def __init__(self, pool: LatentPool, device: torch.device) -> None:
        self.pool, self.device = pool, device

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        latents, pictures = self.pool.rows(batch.indices)
        decoded = model(sent(latents, self.device)).float()
        return {"loss": (decoded - sent(pictures, self.device)).square().mean()}


@torch.no_grad()
def psnr_db(decoder: nn.Module, latents: Tensor, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) of decoded latents against `pictures`, both cut to [-1, 1]: peak 2."""
    device = next(decoder.parameters()).device
    errors = []
    for z, expected in zip(torch.split(latents, 16), torch.split(pictures, 16), strict=True):
        decoded = decoder(z.to(device)).float().cpu().clamp(-1, 1)
        errors.append((decoded - expected.clamp(-1, 1)).square().flatten(1).mean(1))
    error = float(torch.cat(errors).mean())
    return 10.0 * math.log10(4.0 / max(error, 1e-12))


def size_metrics(base: BaseModel, small: Any) -> dict[str, float]:
    """Parameters, and MACs of decoding one latent, of the full and the small decoder."""
    vae = copy.deepcopy(base.vae).to("meta")
    latent = torch.empty(1, *base.latent_shape, device="meta")
    halves = {"full": vae, "small": copy.deepcopy(small).to("meta")}
    metrics = {}
    for name, model in halves.items():
        parts = [model.decoder, *([model.post_quant_conv] if model.post_quant_conv is not None else [])]
        metrics[f"parameters_{name}"] = float(sum(p.numel() for part in parts for p in part.parameters()))
        macs, _ = count_macs(partial(model.decode, latent))
        metrics[f"macs_{name}"] = float(macs)
    metrics["parameter_ratio"] = metrics["parameters_full"] / metrics["parameters_small"]
    metrics["mac_ratio"] = metrics["macs_full"] / metrics["macs_small"]
    return metrics


def _real_psnr(
    base: BaseModel, data: LatentData, small: nn.Module, context: StageContext
) -> dict[str, float]:
    """PSNR against the full decoder on latents of real validation pictures."""
    indices = torch.arange(min(_HELD_OUT_MOST, data.size("validation")))
    if len(indices) == 0:
        return {}
    latents = data.latents("validation", indices, seed=context.seed, iteration=0) / base.scaling_factor
    pictures = decode_unclipped(base, latents, device=context.device)
    return {"psnr_real_db": psnr_db(small, latents, pictures)}
