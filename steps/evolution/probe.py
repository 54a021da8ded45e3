"""Scoring units: the CLIP score of pictures drawn with and without each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from artifacts_schema.architecture import UnitScore
from artifacts_schema.config import ArchitectureEvolutionConfig
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evolution.actions import Budget
from steps.evolution.kept import ProbeFile
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.training.randomness import epoch_indices, keyed_normal, spawn
from steps.unet.architecture import Unit, list_units
from steps.unet.evolved import EvolvedUNet

SPLIT = "validation"
_ALL = "all"  # key of the scores with every unit in place


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
    """Draws the same captions from the same noise with any UNet and scores the pictures."""

    base: BaseModel
    scorer: Scorer
    captions: list[str]
    embeddings: Tensor
    empty_embedding: Tensor
    noise: Tensor
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
        count = config.probe_captions
        indices = epoch_indices(
            samples=data.size(SPLIT), start=index * count, count=count, seed=spawn(seed, "probe.captions")
        )
        captions = data.captions(SPLIT)
        noise = keyed_normal(
            base.latent_shape, seed=seed, name="probe.noise", iteration=index, indices=torch.arange(count)
        )
        return cls(
            base=base,
            scorer=scorer,
            captions=[captions[i] for i in indices.tolist()],
            embeddings=data.embeddings(SPLIT, indices),
            empty_embedding=data.empty_embedding,
            noise=noise,
            steps=config.probe_steps,
            guidance_scale=config.probe_guidance_scale,
        )

    def scores(self, unet: EvolvedUNet) -> list[float]:
        """CLIP score of every picture."""
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(self.base.scheduler_config),
            noise=self.noise,
            embeddings=self.embeddings,
            empty_embedding=self.empty_embedding,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            prediction_type="v_prediction",
        )
        pictures = decode_latents(self.base.vae, latents, scaling_factor=self.base.scaling_factor)
        return [float(value) for value in self.scorer.scores(pictures, self.captions)]


def score_units(
    unet: EvolvedUNet, probe: Probe, budget: Budget, context: StageContext, folder: Path
) -> tuple[float, list[UnitScore]]:
    """Mean CLIP score of the UNet as it is, and the worth of each of its units.

    Every finished probe is kept in `folder` and not made again after an interruption.
    """
    units = list_units(unet.spec, unet.geometry())
    finished = ProbeFile(context, folder / "probes.json", unet.spec.layout())
    context.progress.start("probing units", len(units) + 1)
    try:
        for done, unit in enumerate([None, *units]):
            key = _ALL if unit is None else unit.id
            if key not in finished.scores:
                unet.set_skipped([] if unit is None else [unit.id])
                finished.add(key, probe.scores(unet))
            context.progress.update(done + 1)
    finally:
        unet.set_skipped()
        context.progress.close()
    whole = finished.scores[_ALL]
    scores = [
        unit_score(unit, whole, finished.scores[unit.id], budget.saving(unet.spec, unit)) for unit in units
    ]
    return sum(whole) / len(whole), scores


def unit_score(unit: Unit, with_unit: Sequence[float], without: Sequence[float], latency: float) -> UnitScore:
    """Worth of a unit from paired scores: mean difference over latency, 0 under one standard error."""
    differences = torch.tensor(with_unit, dtype=torch.float64) - torch.tensor(without, dtype=torch.float64)
    n = len(differences)
    mean = float(differences.mean())
    # One caption alone says nothing about the noise: its difference is taken as it is.
    error = float(differences.std(correction=1)) / n**0.5 if n > 1 else 0.0
    counted = mean if mean > error else 0.0
    return UnitScore(
        unit=unit.id,
        kind=unit.kind,
        difference=mean,
        standard_error=error,
        n=n,
        latency=latency,
        value=max(counted, 0.0) / max(latency, 1e-12),
    )
