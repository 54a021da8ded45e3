"""The pictures of a bundle beside torch's: from which noise, what torch draws, how far apart they are."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from artifacts_schema.base import Measurement
from artifacts_schema.bundle import DrawingScores
from artifacts_schema.references import WeightsRef
from steps.diffusion.sampler import sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.export.bundle_run import Bundle, to_pixels
from steps.models.base import BaseModel, encode_captions
from steps.models.clip import ClipScorer
from steps.models.stored import load_model
from steps.store.base import Store
from steps.training.randomness import keyed_normal


def score(drawn: Tensor, expected: Tensor, captions: Sequence[str], clip: ClipScorer) -> DrawingScores:
    """Pictures (n, 3, H, W) in about [-1, 1] of the bundle and of torch, and the captions both were drawn from."""
    ratios = [_image_psnr(*pair) for pair in zip(drawn, expected, strict=True)]
    found, reference = (
        float(clip.scores(to_pixels(images), captions).mean()) for images in (drawn, expected)
    )
    return DrawingScores(
        pictures=len(drawn),
        psnr_db=Measurement.of(ratios, "dB"),
        worst_psnr_db=min(ratios),
        clip_score=found,
        torch_clip_score=reference,
        clip_drop=reference - found,
    )


def drawing_noise(base: BaseModel, count: int) -> Tensor:
    """(count, c, h, w): what a bundle is drawn from wherever it is compared with torch."""
    numbers = torch.arange(count)
    return keyed_normal(base.latent_shape, seed=0, name="bundle_drawing", iteration=0, indices=numbers)


@torch.no_grad()
def torch_images(
    bundle: Bundle,
    base: BaseModel,
    captions: Sequence[str],
    noise: Tensor,
    store: Store,
    *,
    unet_ref: WeightsRef | None,
    decoder_ref: WeightsRef | None,
) -> Tensor:
    """(n, 3, H, W) in about [-1, 1]: the torch models in float32 on the bundle's grid, at its guidance scale.

    None stands for the base's own.
    """
    manifest = bundle.manifest
    latents = sample_latents(
        base.unet if unet_ref is None else load_model(store, unet_ref),
        NoiseSchedule.from_config(base.scheduler_config),
        noise=noise,
        embeddings=encode_captions(base.tokenizer, base.text_encoder, captions),
        empty_embedding=encode_captions(base.tokenizer, base.text_encoder, [""]),
        steps=manifest.steps,
        guidance_scale=manifest.guidance_scale,
        prediction_type=manifest.model_prediction,
    )
    decoder = base.vae if decoder_ref is None else load_model(store, decoder_ref)
    return torch.cat([decoder.decode(z / base.scaling_factor).sample for z in latents.split(1)])


def _image_psnr(found: Tensor, expected: Tensor) -> float:
    """10 log10(1 / mean square error) of two pictures, brought from [-1, 1] to [0, 1] and not rounded to bytes.

    What is not a number is as far off as can be.
    """
    errors = ((found.double().clamp(-1, 1) - expected.double().clamp(-1, 1)) / 2).square()
    return -10.0 * math.log10(max(float(errors.nan_to_num(1.0).mean()), 1e-20))
