"""Whether seeds matter: how far apart the pictures of one caption are, beside those of different captions."""

import torch
from torch import Tensor

from steps.data.prepared import PreparedData
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.features import FeatureExtractor
from steps.models.base import BaseModel
from steps.training.randomness import keyed_normal


def seed_ratio(features: Tensor) -> float:
    """Mean distance between the rows of one caption over that between rows of different ones.

    `features` are (captions, seeds, d), of at least two captions and seeds.
    """
    captions, seeds, _ = features.shape
    if captions < 2 or seeds < 2:
        raise ValueError(f"expected at least two captions and two seeds, found {captions} and {seeds}")
    rows = features.flatten(0, 1)
    distances = torch.cdist(rows, rows)
    owner = torch.arange(captions).repeat_interleave(seeds)
    same = owner[:, None] == owner[None]
    within = distances[same].sum() / (captions * seeds * (seeds - 1))  # none is at a distance from itself
    return float(within / distances[~same].mean())


def seed_ratios(
    base: BaseModel,
    data: PreparedData,
    extractor: FeatureExtractor,
    *,
    captions: int,
    seeds: int,
    steps: int,
    guidance_scale: float,
) -> dict[str, float]:
    """`seed_ratio` of what the base draws for validation captions, and of those captions' real pictures.

    `real` is missing where there are fewer variants than seeds.
    """
    variants = data.ref.splits["validation"].variants
    total = data.size("validation") // variants
    chosen = torch.linspace(0, total - 1, min(captions, total)).long()
    rows = (chosen * variants).repeat_interleave(seeds)
    latents = sample_latents(
        base.unet,
        NoiseSchedule.from_config(base.scheduler_config),
        noise=keyed_normal(
            base.latent_shape, seed=0, name="seeds", iteration=0, indices=torch.arange(len(rows))
        ),
        embeddings=data.embeddings("validation", rows),
        empty_embedding=data.empty_embedding,
        steps=steps,
        guidance_scale=guidance_scale,
        prediction_type=base.prediction_type,
    )
    drawn = decode_latents(base.vae, latents, scaling_factor=base.scaling_factor)
    ratios = {"base": seed_ratio(extractor(drawn).view(len(chosen), seeds, -1))}
    if variants >= seeds:
        real = data.images("validation", rows + torch.arange(seeds).repeat(len(chosen)))
        ratios["real"] = seed_ratio(extractor(real).view(len(chosen), seeds, -1))
    return ratios
