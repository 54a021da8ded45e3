"""What every evaluation of a run measures with: captions, noise, evaluators and features of the real pictures."""

from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from artifacts_schema.base import Interval
from artifacts_schema.config import KEPT_PICTURES, EvaluationConfig
from artifacts_schema.evaluation import GuidancePoint
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.sampler import Sampler, decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import frechet_distance, interval, kernel_distance
from steps.evaluation.features import FeatureExtractor, load_features
from steps.files.errors import EvaluationError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.clip import ClipScorer
from steps.training.randomness import epoch_indices, keyed_normal, spawn

NOISE_SEED = 20230606  # fixed: every variant of every run draws the same noise
RETRIEVAL_CANDIDATES = 100


class Bench:
    """Captions, noise and evaluators; the same for every variant of a run."""

    def __init__(self, inputs: StageInputs, config: EvaluationConfig, context: StageContext) -> None:
        self.inputs, self.config, self.context = inputs, config, context
        data = inputs.data
        size = data.size(config.split)
        if size < 4:
            raise EvaluationError(
                f"the split {config.split!r} has {size} pictures; an evaluation needs at least 4"
            )
        self.indices = epoch_indices(samples=size, start=0, count=config.pictures, seed=NOISE_SEED)
        everything = data.captions(config.split)
        self.captions = [everything[index] for index in self.indices.tolist()]
        self.embeddings = data.embeddings(config.split, self.indices)
        self.clip: ClipScorer = inputs.measure_clip
        self.features: FeatureExtractor = load_features(config.features, inputs.inception, context.device)
        self.candidates = self._candidates(everything)

    def draw(  # noqa: PLR0913 - what decides a picture
        self,
        unet: nn.Module,
        decoder: Any,
        scale: float,
        *,
        steps: int,
        prediction_type: PredictionType,
        sampler: Sampler,
    ) -> Tensor:
        """uint8 pictures (n, 3, H, W) of this bench's captions at one guidance scale."""
        base, numbers = self.inputs.base, torch.arange(self.config.pictures)
        noise = keyed_normal(
            base.latent_shape, seed=NOISE_SEED, name="evaluation", iteration=0, indices=numbers
        )
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(base.scheduler_config),
            noise=noise,
            embeddings=self.embeddings,
            empty_embedding=self.inputs.data.empty_embedding,
            steps=steps,
            guidance_scale=scale,
            prediction_type=prediction_type,
            sampler=sampler,
        )
        return decode_latents(decoder, latents, scaling_factor=base.scaling_factor)

    def measure(self, images: Tensor, scale: float, real: NDArray[Any]) -> GuidancePoint:
        """Distances, CLIP score and retrieval of pictures drawn for this bench's captions.

        `real` are the features (m, d) of the pictures that distances are measured to.
        """
        features = self.features(images).numpy()
        embedded = self.clip.image_embeddings(images)
        clip = (embedded * self.clip.text_embeddings(self.captions)).sum(-1)
        hits = self._retrieval(embedded)
        tensors = {
            # Everything that is measured is measured here; the rest of the pictures would be the bulk of the store.
            "images": images[:KEPT_PICTURES].contiguous(),
            "features": torch.from_numpy(features),
            "clip": clip.contiguous(),
            "caption": self.indices,
        }
        return GuidancePoint(
            guidance_scale=scale,
            kernel_distance=kernel_distance(features, real, seed=spawn(NOISE_SEED, "blocks")),
            frechet_distance=frechet_distance(features, real),
            clip_score=by_caption(clip, self.indices),
            retrieval_top1=by_caption(hits.float(), self.indices),
            retrieval_candidates=len(self.candidates[0]),
            images=self.context.store.put_bytes(save_tensors(tensors)),
        )

    def protocol(self) -> dict[str, Any]:
        """What makes two evaluations comparable."""
        return {
            "split": self.config.split,
            "pictures": self.config.pictures,
            "features": self.config.features,
            "measure_clip": self.inputs.identity("measure_clip"),
            "data": self.inputs.identity("data"),
            "noise_seed": NOISE_SEED,
            "guidance_scales": list(self.config.guidance_scales),
        }

    def _candidates(self, everything: list[str]) -> tuple[list[str], Tensor]:
        """Captions a picture must be told from: the split's first hundred different ones after shuffling."""
        order = epoch_indices(
            samples=len(everything), start=0, count=len(everything), seed=spawn(NOISE_SEED, "retrieval")
        )
        names = list(dict.fromkeys(everything[i] for i in order.tolist()))[:RETRIEVAL_CANDIDATES]
        return names, self.clip.text_embeddings(names)

    def _retrieval(self, embedded: Tensor) -> Tensor:
        """(n,) whether a picture is nearer to its own caption than to every other candidate."""
        names, candidates = self.candidates
        own = (embedded * self.clip.text_embeddings(self.captions)).sum(-1)
        others = embedded @ candidates.T
        same = torch.tensor([[name == caption for name in names] for caption in self.captions])
        return own > others.masked_fill(same, -2.0).amax(-1)


def by_caption(values: Tensor, captions: Tensor) -> Interval:
    """Mean with its 95 % interval; pictures of one caption are averaged first, since they are not independent."""
    means = [float(values[captions == caption].mean()) for caption in captions.unique()]
    return interval(means, n=len(values))
