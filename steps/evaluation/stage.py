"""`evaluation`: draws and measures one variant at every guidance scale.

Every variant sees the same captions and the same noise, so differences between variants are paired.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from artifacts_schema.base import Interval, Measurement
from artifacts_schema.config import EvaluationConfig, StepDistillationConfig
from artifacts_schema.evaluation import EvaluationRecord, GuidancePoint
from artifacts_schema.references import WeightsRef
from steps.context import StageContext
from steps.diffusion.sampler import Sampler, decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.errors import EvaluationError
from steps.evaluation.clip_score import ClipScorer
from steps.evaluation.distances import frechet_distance, interval, kernel_distance
from steps.evaluation.features import FeatureExtractor, load_features
from steps.evaluation.pictures import grid, png
from steps.inputs import StageInputs
from steps.models import PredictionType, load_model
from steps.randomness import epoch_indices, keyed_normal, spawn

_NOISE_SEED = 20230606  # fixed: every variant of every run draws the same noise
RETRIEVAL_CANDIDATES = 100


@dataclass(frozen=True)
class Variant:
    """What is evaluated: a UNet, how it is sampled, and a decoder. None stands for the base's own."""

    name: str
    title: str
    sampler: Sampler
    steps: int
    unet: WeightsRef | None
    prediction_type: PredictionType
    decoder: WeightsRef | None = None


def variants(
    *,
    evaluation: EvaluationConfig,
    distillation: StepDistillationConfig,
    prediction_type: PredictionType,
    teacher: WeightsRef,
    student_intermediate: WeightsRef,
    student: WeightsRef,
    decoder: WeightsRef,
) -> dict[str, Variant]:
    """Every variant by name. Titles carry the real step counts, whatever the stages are called."""
    many, middle, few = evaluation.base_steps, distillation.intermediate_steps, distillation.final_steps
    items = [
        Variant("base_50", f"base, {many} steps", "ddim", many, None, prediction_type),
        Variant("base_8", f"base, {few} steps", "ddim", few, None, prediction_type),
        Variant("base_8_dpm", f"base, {few} steps, DPM-Solver++", "dpm", few, None, prediction_type),
        Variant("teacher_16", f"teacher, {middle} steps", "ddim", middle, teacher, "v_prediction"),
        Variant(
            "student_16", f"student, {middle} steps", "ddim", middle, student_intermediate, "v_prediction"
        ),
        Variant("student_8", f"student, {few} steps", "ddim", few, student, "v_prediction"),
        Variant(
            "student_8_small_decoder",
            f"student, {few} steps, small decoder",
            "ddim",
            few,
            student,
            "v_prediction",
            decoder,
        ),
    ]
    return {item.name: item for item in items}


def run(
    variant: Variant, inputs: StageInputs, config: EvaluationConfig, context: StageContext
) -> EvaluationRecord:
    """Draw `config.pictures` pictures per guidance scale and measure them. Seeds do not depend on the variant."""
    bench = _Bench(inputs, config, context)
    unet, decoder = _models(variant, inputs, context)
    context.progress.start(f"evaluation {variant.name}", config.pictures * len(config.guidance_scales))
    points, seconds = [], []
    for number, scale in enumerate(config.guidance_scales):
        started = time.monotonic()
        images = bench.draw(unet, decoder, variant, scale, done=number * config.pictures)
        seconds.append((time.monotonic() - started) / config.pictures)
        points.append(bench.measure(images, scale))
    context.progress.close()
    return EvaluationRecord(
        stage="evaluation",
        parents=tuple(ref.identity() for ref in (variant.unet, variant.decoder) if ref is not None),
        config=config.model_dump(mode="json"),
        seed=context.seed,
        variant=variant.name,
        title=variant.title,
        sampler=variant.sampler,
        steps=variant.steps,
        points=tuple(points),
        real=bench.measure_real(),
        pictures=config.pictures,
        captions=tuple(bench.captions[: config.grid_pictures]),
        protocol=bench.protocol(),
        seconds_per_picture=Measurement.of(seconds, "s"),
    )


def _models(variant: Variant, inputs: StageInputs, context: StageContext) -> tuple[nn.Module, Any]:
    unet = inputs.base.unet if variant.unet is None else load_model(context.store, variant.unet)
    decoder = inputs.base.vae if variant.decoder is None else load_model(context.store, variant.decoder)
    return unet.to(context.device), decoder.to(context.device)


class _Bench:
    """Captions, noise, real pictures and evaluators; the same for every variant of a run."""

    def __init__(self, inputs: StageInputs, config: EvaluationConfig, context: StageContext) -> None:
        self.inputs, self.config, self.context = inputs, config, context
        data = inputs.data
        size = data.size(config.split)
        if size < 4:
            raise EvaluationError(
                f"the split {config.split!r} has {size} pictures; an evaluation needs at least 4"
            )
        self.indices = epoch_indices(samples=size, start=0, count=config.pictures, seed=_NOISE_SEED)
        everything = data.captions(config.split)
        self.captions = [everything[index] for index in self.indices.tolist()]
        self.embeddings = data.embeddings(config.split, self.indices)
        self.clip: ClipScorer = inputs.measure_clip
        self.features: FeatureExtractor = load_features(config.features)
        self.real_features = self.features(data.images(config.split, torch.arange(size))).numpy()
        self.candidates = self._candidates(everything)

    def draw(self, unet: nn.Module, decoder: Any, variant: Variant, scale: float, *, done: int) -> Tensor:
        """uint8 pictures (n, 3, H, W) of one variant at one guidance scale."""
        base, numbers = self.inputs.base, torch.arange(self.config.pictures)
        noise = keyed_normal(
            base.latent_shape, seed=_NOISE_SEED, name="evaluation", iteration=0, indices=numbers
        )
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(base.scheduler_config),
            noise=noise,
            embeddings=self.embeddings,
            empty_embedding=self.inputs.data.empty_embedding,
            steps=variant.steps,
            guidance_scale=scale,
            prediction_type=variant.prediction_type,
            sampler=variant.sampler,
        )
        self.context.progress.update(done + len(numbers))
        return decode_latents(decoder, latents, scaling_factor=base.scaling_factor)

    def measure(self, images: Tensor, scale: float) -> GuidancePoint:
        """Distances, CLIP score and retrieval of pictures drawn for this bench's captions."""
        features = self.features(images).numpy()
        embedded = self.clip.image_embeddings(images)
        clip = (embedded * self.clip.text_embeddings(self.captions)).sum(-1)
        hits = self._retrieval(embedded)
        tensors = {
            "images": images.contiguous(),
            "features": torch.from_numpy(features),
            "clip": clip.contiguous(),
            "caption": self.indices,
        }
        shown = min(self.config.grid_pictures, len(images))
        return GuidancePoint(
            guidance_scale=scale,
            kernel_distance=kernel_distance(features, self.real_features, seed=spawn(_NOISE_SEED, "blocks")),
            frechet_distance=frechet_distance(features, self.real_features),
            clip_score=by_caption(clip, self.indices),
            retrieval_top1=by_caption(hits.float(), self.indices),
            retrieval_candidates=len(self.candidates[0]),
            images=self.context.store.put_bytes(save_tensors(tensors)),
            grid=self.context.store.put_bytes(png(grid(images[:shown], columns=min(8, shown)))),
        )

    def measure_real(self) -> GuidancePoint:
        """Real pictures of these captions, measured against those of the train split: what perfect pictures get."""
        data = self.inputs.data
        point = self.measure(data.images(self.config.split, self.indices), 1.0)
        count = min(data.size("train"), len(self.real_features))
        chosen = epoch_indices(samples=data.size("train"), start=0, count=count, seed=_NOISE_SEED)
        others = self.features(data.images("train", chosen)).numpy()
        own = self.real_features[self.indices.unique().numpy()]
        return point.model_copy(
            update={
                "kernel_distance": kernel_distance(own, others, seed=spawn(_NOISE_SEED, "blocks")),
                "frechet_distance": frechet_distance(own, others),
            }
        )

    def protocol(self) -> dict[str, Any]:
        """What makes two evaluations comparable."""
        plan = self.inputs.plan
        return {
            "split": self.config.split,
            "pictures": self.config.pictures,
            "features": self.config.features,
            "measure_clip": plan.measure_clip.identity() if plan.measure_clip else "",
            "data": plan.data.identity(),
            "noise_seed": _NOISE_SEED,
            "guidance_scales": list(self.config.guidance_scales),
        }

    def _candidates(self, everything: list[str]) -> tuple[list[str], Tensor]:
        """Captions a picture must be told from: the split's first hundred different ones after shuffling."""
        order = epoch_indices(
            samples=len(everything), start=0, count=len(everything), seed=spawn(_NOISE_SEED, "retrieval")
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
