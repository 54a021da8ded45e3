"""Probing an architecture: the CLIP score of pictures that it draws, always of the same captions from the same noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from artifacts_schema.stage_configs import ArchitectureEvolutionConfig
from steps.data.groups import picture_group
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import DataError
from steps.models.base import BaseModel
from steps.training.randomness import epoch_indices, keyed_integers, keyed_normal, spawn
from steps.unet.evolved import EvolvedUNet

SPLIT = "validation"


class Scorer(Protocol):
    """Cosine of each picture with its caption; `steps.models.clip.ClipScorer` has it."""

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(n,) for pictures uint8 (n, 3, H, W) and n captions."""


class CaptionData(Protocol):
    """What a probe needs of prepared data."""

    @property
    def empty_embedding(self) -> Tensor:
        """Text embedding of the empty caption, (1, tokens, width)."""

    def size(self, split: str) -> int:
        """Number of captioned pictures."""

    def captions(self, split: str) -> list[str]:
        """All captions of a split, by index."""

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        """Text embeddings (n, tokens, width)."""


@dataclass(frozen=True)
class Probe:
    """The captions and the noise of one round, one caption per picture group, for any UNet; in batches of `batch`."""

    base: BaseModel
    scorer: Scorer
    captions: list[str]
    embeddings: Tensor
    empty_embedding: Tensor
    noise: Tensor
    batch: int
    steps: int
    guidance_scale: float

    @classmethod
    def of_round(
        cls,
        base: BaseModel,
        data: CaptionData,
        scorer: Scorer,
        config: ArchitectureEvolutionConfig,
        *,
        seed: int,
        index: int,
    ) -> "Probe":
        """The probe of one round; other rounds have other captions and noise, so that none is fitted."""
        captions = data.captions(SPLIT)
        indices = one_per_group(captions, config.most_captions, seed=seed, index=index)
        noise = keyed_normal(
            base.latent_shape, seed=seed, name="probe.noise", iteration=index, indices=indices
        )
        return cls(
            base=base,
            scorer=scorer,
            captions=[captions[i] for i in indices.tolist()],
            embeddings=data.embeddings(SPLIT, indices),
            empty_embedding=data.empty_embedding,
            noise=noise,
            batch=config.captions_per_batch,
            steps=config.probe_steps,
            guidance_scale=config.probe_guidance_scale,
        )

    @property
    def batches(self) -> int:
        """Number of batches that there are captions for; the last may be smaller."""
        return -(-len(self.captions) // self.batch)

    def scores(self, unet: EvolvedUNet, number: int) -> list[float]:
        """CLIP score of every picture of one batch."""
        part = slice(number * self.batch, (number + 1) * self.batch)
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(self.base.scheduler_config),
            noise=self.noise[part],
            embeddings=self.embeddings[part],
            empty_embedding=self.empty_embedding,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            prediction_type="v_prediction",
        )
        pictures = decode_latents(self.base.vae, latents, scaling_factor=self.base.scaling_factor)
        return [float(value) for value in self.scorer.scores(pictures, self.captions[part])]


def one_per_group(captions: Sequence[str], most: int, *, seed: int, index: int) -> Tensor:
    """Indices of the captions of round `index`: at most `most`, each of another picture group, int64.

    Variants of one picture share their difficulty: two of them are less than two pieces of evidence. Rounds go on through
    the groups where the last one stopped, and draw the caption of a group anew. Raises DataError for fewer than two groups.
    """
    groups: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        groups.setdefault(picture_group(caption), []).append(i)
    if len(groups) < 2:
        raise DataError(
            f"evolution compares captions of at least two picture groups, found {len(groups)} in the "
            f"{SPLIT} split; give more pictures or raise data.limit"
        )
    members = list(groups.values())
    order = epoch_indices(
        samples=len(members), start=0, count=len(members), seed=spawn(seed, "probe.captions")
    )
    count = min(most, len(members))
    chosen = order[(index * count + torch.arange(count)) % len(members)]
    draws = keyed_integers(0, 1 << 30, seed=seed, name="probe.caption", iteration=index, indices=chosen)
    return torch.tensor(
        [
            members[group][draw % len(members[group])]
            for group, draw in zip(chosen.tolist(), draws.tolist(), strict=True)
        ]
    )
