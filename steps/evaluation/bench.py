"""What every measurement on a split shares: captions, noise, evaluators, and the protocol that names them."""

from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from artifacts_schema.base import content_hash
from artifacts_schema.data import SplitName
from artifacts_schema.evaluation import GuidancePoint, RealSplit
from artifacts_schema.plan import InputName
from artifacts_schema.stage_configs import KEPT_PICTURES
from steps.data.groups import picture_group
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.sampler import Sampler, decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import clustered_mean, frechet_distance, kernel_distance
from steps.evaluation.features import FeatureExtractor, load_features
from steps.files.errors import EvaluationError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.clip import ClipScorer
from steps.training.randomness import epoch_indices, keyed_normal, spawn

NOISE_SEED = 20230606  # fixed: every variant of every run draws the same noise
RETRIEVAL_CANDIDATES = 100
EVALUATOR_OF: dict[str, InputName] = {"validation": "signal_clip", "test": "measure_clip"}
"""Decisions are made by one evaluator, results measured by another."""


class Bench:
    """Captions, noise and evaluators of a split; the same for every variant of a run."""

    def __init__(self, inputs: StageInputs, split: SplitName, features: str, context: StageContext) -> None:
        self.inputs, self.split, self.context = inputs, split, context
        self.feature_name = features
        self.captions = inputs.data.captions(split)
        self.texts = list(dict.fromkeys(self.captions))
        if len({picture_group(caption) for caption in self.texts}) < _FEWEST_GROUPS:
            raise EvaluationError(
                f"the split {split!r} has {len(self.texts)} captions of "
                f"{len({picture_group(c) for c in self.texts})} different pictures; an evaluation needs "
                f"{_FEWEST_GROUPS} that differ in more than a skin tone"
            )

    @cached_property
    def clip(self) -> ClipScorer:
        """The evaluator of this split."""
        found: ClipScorer = getattr(self.inputs, EVALUATOR_OF[self.split])
        return found

    @cached_property
    def features(self) -> FeatureExtractor:
        """What distances are measured with."""
        return load_features(self.feature_name, self.inputs.inception, self.context.device)

    def chosen(self, count: int) -> Tensor:
        """(count,) which captions are drawn: all of them in turn, in an order of their own."""
        return epoch_indices(samples=len(self.texts), start=0, count=count, seed=NOISE_SEED)

    def drawn(self, count: int) -> list[str]:
        """The captions of `count` pictures."""
        return [self.texts[i] for i in self.chosen(count).tolist()]

    def draw(  # noqa: PLR0913 - what decides a picture
        self,
        unet: nn.Module,
        decoder: Any,
        count: int,
        scale: float,
        *,
        steps: int,
        prediction_type: PredictionType,
        sampler: Sampler,
    ) -> Tensor:
        """uint8 pictures (count, 3, H, W) at one guidance scale; picture i has the i-th of the `chosen` captions."""
        base, data, numbers = self.inputs.base, self.inputs.data, torch.arange(count)
        first = {caption: index for index, caption in reversed(list(enumerate(self.captions)))}
        rows = torch.tensor([first[caption] for caption in self.drawn(count)])
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(base.scheduler_config),
            noise=keyed_normal(
                base.latent_shape, seed=NOISE_SEED, name="evaluation", iteration=0, indices=numbers
            ),
            embeddings=data.embeddings(self.split, rows),
            empty_embedding=data.empty_embedding,
            steps=steps,
            guidance_scale=scale,
            prediction_type=prediction_type,
            sampler=sampler,
        )
        return decode_latents(decoder, latents, scaling_factor=base.scaling_factor)

    def measure(
        self, images: Tensor, captions: list[str], scale: float, reference: tuple[NDArray[Any], list[str]]
    ) -> GuidancePoint:
        """Distances, CLIP score and retrieval of pictures (n, 3, H, W) drawn for these captions.

        `reference` are features (m, d) and captions of the pictures that distances are measured to.
        """
        real, real_captions = reference
        groups, features = groups_of(captions), self.features(images)
        embedded = self.clip.image_embeddings(images)
        clip = (embedded * self.clip.text_embeddings(captions)).sum(-1)
        hits = self._retrieval(embedded, captions)
        numbers = {text: place for place, text in enumerate(dict.fromkeys(captions))}
        caption = torch.tensor([numbers[text] for text in captions])
        # Everything that is measured is measured here; the rest of the pictures would be the bulk of the store.
        tensors = {"images": images[:KEPT_PICTURES], "features": features, "clip": clip, "caption": caption}
        distance = kernel_distance(
            features.numpy(), real, groups=groups, real_groups=groups_of(real_captions)
        )
        return GuidancePoint(
            guidance_scale=scale,
            kernel_distance=distance.interval(),
            frechet_distance=frechet_distance(features.numpy(), real),
            clip_score=clustered_mean(clip.tolist(), groups).interval("cosine"),
            retrieval_top1=clustered_mean(hits.float().tolist(), groups).interval(),
            retrieval_candidates=len(self.candidates[0]),
            seed_diversity=seed_diversity(features, caption),
            images=self.context.store.put_bytes(
                save_tensors({name: value.contiguous() for name, value in tensors.items()})
            ),
        )

    def protocol(self, real: RealSplit, pictures: int) -> dict[str, Any]:
        """What makes two evaluations comparable: neither the training data nor the scales that were tried."""
        return {
            "split": self.split,
            "pictures": pictures,
            "captions": content_hash(self.texts),
            "real_pictures": real.sha256,
            "features": self.feature_name,
            "evaluator": self.inputs.identity(EVALUATOR_OF[self.split]),
            "noise_seed": NOISE_SEED,
        }

    @cached_property
    def candidates(self) -> tuple[list[str], Tensor]:
        """Captions a picture must be told from: the split's first hundred after shuffling."""
        size = len(self.texts)
        order = epoch_indices(samples=size, start=0, count=size, seed=spawn(NOISE_SEED, "retrieval"))
        names = [self.texts[i] for i in order.tolist()][:RETRIEVAL_CANDIDATES]
        return names, self.clip.text_embeddings(names)

    def _retrieval(self, embedded: Tensor, captions: list[str]) -> Tensor:
        """(n,) whether a picture is nearer to its own caption than to every other candidate."""
        names, candidates = self.candidates
        own = (embedded * self.clip.text_embeddings(captions)).sum(-1)
        others = embedded @ candidates.T
        same = torch.tensor([[name == caption for name in names] for caption in captions])
        return own > others.masked_fill(same, -2.0).amax(-1)


_FEWEST_GROUPS = 3


def groups_of(captions: list[str]) -> list[str]:
    """The group of each picture: those that differ in skin tone or seed alone are not independent."""
    return [picture_group(caption) for caption in captions]


def seed_diversity(features: Tensor, captions: Tensor) -> float | None:
    """Mean distance of features (n, d) between pictures of one caption (n,) over that between captions."""
    distances = torch.cdist(features.double(), features.double())
    same = captions[:, None] == captions[None]
    within = distances[same & ~torch.eye(len(captions), dtype=torch.bool)]
    between = distances[~same]
    if not len(within) or not len(between):
        return None
    return float(within.mean() / between.mean())
