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
from artifacts_schema.protocol import Part
from artifacts_schema.result_configs import KEPT_PICTURES
from steps.data.groups import picture_group
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.sampler import Sampler, decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import clustered_mean, frechet_distance, kernel_distance
from steps.evaluation.features import FeatureExtractor, features_identity, load_features
from steps.evaluation.pictures import resized
from steps.evaluation.protocol import calibrate, check_environment, check_evaluator, pictures_of
from steps.evaluation.subject import FrozenSubject, subject_of
from steps.files.errors import EvaluationError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.clip import ClipScorer
from steps.training.randomness import epoch_indices, keyed_normal

EVALUATOR_OF: dict[str, InputName] = {"validation": "signal_clip", "test": "measure_clip"}
"""Decisions are made by one evaluator, results measured by another."""


class Bench:
    """Captions, noise and evaluators of a split or a frozen protocol; the same for every variant of a run.

    `part` is of a frozen protocol: its held-out captions, or what is reported apart. Raises EvaluationError where the run
    has another evaluator, other features or another picture size than the protocol.
    """

    def __init__(
        self,
        inputs: StageInputs,
        split: SplitName,
        features: str,
        context: StageContext,
        part: Part = "held_out",
    ) -> None:
        self.inputs, self.split, self.context = inputs, split, context
        self.feature_name = features
        self.subject = subject_of(inputs, split, part)
        self.captions, self.texts = self.subject.captions, self.subject.texts
        if isinstance(self.subject, FrozenSubject):
            identity = inputs.identity(EVALUATOR_OF[split])
            check_evaluator(self.subject.protocol, identity, features, features_identity(features))
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
        return epoch_indices(samples=len(self.texts), start=0, count=count, seed=self.subject.seed)

    def drawn(self, count: int) -> list[str]:
        """The captions of `count` pictures."""
        return [self.texts[i] for i in self.chosen(count).tolist()]

    def noise(self, count: int) -> Tensor:
        """(count, c, h, w): what the pictures are drawn from, whoever draws them."""
        return keyed_normal(
            self.inputs.base.latent_shape,
            seed=self.subject.seed,
            name="evaluation",
            iteration=0,
            indices=torch.arange(count),
        )

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
        base, protocol = self.inputs.base, self.subject.protocol
        if protocol is not None and (why := protocol.why_not_drawn_at(base.image_size)):
            raise EvaluationError(f"protocol {why}")
        chosen, noise = self.chosen(count).tolist(), self.noise(count)
        images = torch.empty(0)
        for start in range(0, count, _TOGETHER):
            part = slice(start, start + _TOGETHER)
            embeddings, empty = self.subject.embeddings(base, chosen[part])
            latents = sample_latents(
                unet,
                NoiseSchedule.from_config(base.scheduler_config),
                noise=noise[part],
                embeddings=embeddings,
                empty_embedding=empty,
                steps=steps,
                guidance_scale=scale,
                prediction_type=prediction_type,
                sampler=sampler,
            )
            drawn = self.sized(decode_latents(decoder, latents, scaling_factor=base.scaling_factor))
            if not start:  # room for all of them: to put them together at the end would take it twice
                images = drawn.new_empty((count, *drawn.shape[1:]))
            images[part] = drawn
        return images

    def sized(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, H) in the size that is measured: the protocol's, or as they are."""
        protocol = self.subject.protocol
        return images if protocol is None else resized(images, protocol.image_size)

    def measure(
        self, images: Tensor, captions: list[str], scale: float, reference: tuple[NDArray[Any], list[str]]
    ) -> GuidancePoint:
        """Distances, CLIP score and retrieval of pictures (n, 3, H, W) drawn for these captions.

        `reference` are features (m, d) and captions of the pictures that distances are measured to.
        """
        real, real_captions = reference
        groups, features = groups_of(captions), self.features(images)
        clip, hits = self.told(images, captions)
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
        """What makes two evaluations comparable: neither the training data nor the scales that were tried.

        `frozen` is the frozen protocol's hash, empty where the run measures on a split of its own.
        """
        frozen = self.subject.protocol
        return {
            "split": self.split,
            "frozen": frozen.identity() if frozen else "",
            "pictures": pictures,
            "captions": content_hash(self.texts),
            "real_pictures": real.sha256,
            "features": self.feature_name,
            "evaluator": self.inputs.identity(EVALUATOR_OF[self.split]),
            "noise_seed": self.subject.seed,
        }

    @cached_property
    def candidates(self) -> tuple[list[str], Tensor]:
        """Captions a picture must be told from, and their embeddings."""
        return self.subject.candidates, self.clip.text_embeddings(self.subject.candidates)

    def check_environment(self, reference: NDArray[Any]) -> None:
        """Refuse an environment in which the instruments differ from where the protocol was frozen.

        `reference` are the features of the reference. Raises EvaluationError.
        """
        subject = self.subject
        if not isinstance(subject, FrozenSubject) or subject.part != "held_out":
            return
        found = calibrate(
            subject.calibration,
            pictures_of(subject.protocol, subject.calibration, subject.folder),
            clip=self.clip,
            candidates=self.candidates,
            features=self.features,
            reference=reference,
        )
        check_environment(subject.protocol, found)

    def told(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Of pictures (n, 3, H, W): the cosine (n,) with its caption, and (n,) whether that is the nearest of all
        candidates.
        """
        embedded = self.clip.image_embeddings(images)
        own = (embedded * self.clip.text_embeddings(captions)).sum(-1)
        names, candidates = self.candidates
        same = torch.tensor([[name == caption for name in names] for caption in captions])
        return own, own > (embedded @ candidates.T).masked_fill(same, -2.0).amax(-1)


_FEWEST_GROUPS = 3
# Drawn before they are brought to the size that is measured: 30,000 of 512 x 512 are 24 GB. A multiple of the sampler's batch,
# so that it changes no result.
_TOGETHER = 512


def groups_of(captions: list[str]) -> list[str]:
    """The group of each picture: those that differ in skin tone or seed alone are not independent."""
    return [picture_group(caption) for caption in captions]


def seed_diversity(features: Tensor, captions: Tensor) -> float | None:
    """Mean distance of features (n, d) between pictures of one caption (n,) over that between captions."""
    if len(captions.unique()) == len(captions):
        return None
    distances = torch.cdist(features.double(), features.double())
    same = captions[:, None] == captions[None]
    within = distances[same & ~torch.eye(len(captions), dtype=torch.bool)]
    between = distances[~same]
    if not len(within) or not len(between):
        return None
    return float(within.mean() / between.mean())
