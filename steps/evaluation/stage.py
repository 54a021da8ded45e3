"""`evaluation`: draws and measures one variant at every guidance scale.

Every variant sees the same captions and the same noise, so differences between variants are paired.
"""

import time
from dataclasses import dataclass
from typing import Any

from torch import nn

from artifacts_schema.base import Measurement
from artifacts_schema.config import EvaluationConfig, StepDistillationConfig
from artifacts_schema.evaluation import EvaluationRecord, RealPicturesRecord
from artifacts_schema.references import WeightsRef
from steps.context import StageContext
from steps.diffusion.sampler import Sampler
from steps.errors import EvaluationError
from steps.evaluation.bench import Bench
from steps.evaluation.real_pictures import load_real_features
from steps.inputs import StageInputs
from steps.models import PredictionType, load_model


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
    variant: Variant,
    real: RealPicturesRecord,
    inputs: StageInputs,
    config: EvaluationConfig,
    context: StageContext,
) -> EvaluationRecord:
    """Draw `config.pictures` pictures per guidance scale and measure them. Seeds do not depend on the variant.

    `real` is what `real_pictures` left. Raises EvaluationError where it was measured under another protocol.
    """
    bench = Bench(inputs, config, context)
    if real.protocol != bench.protocol():
        raise EvaluationError(
            f"the real pictures were measured under {real.protocol}, this is {bench.protocol()}"
        )
    features = load_real_features(context.store, real).numpy()
    unet, decoder = _models(variant, inputs, context)
    context.progress.start(f"evaluation {variant.name}", config.pictures * len(config.guidance_scales))
    points, seconds = [], []
    for number, scale in enumerate(config.guidance_scales, start=1):
        started = time.monotonic()
        images = bench.draw(
            unet,
            decoder,
            scale,
            steps=variant.steps,
            prediction_type=variant.prediction_type,
            sampler=variant.sampler,
        )
        seconds.append((time.monotonic() - started) / config.pictures)
        context.progress.update(number * config.pictures)
        points.append(bench.measure(images, scale, features))
    context.progress.close()
    return EvaluationRecord(
        stage="evaluation",
        parents=(
            real.identity(),
            *(ref.identity() for ref in (variant.unet, variant.decoder) if ref is not None),
        ),
        config=config.model_dump(mode="json"),
        seed=context.seed,
        variant=variant.name,
        title=variant.title,
        sampler=variant.sampler,
        steps=variant.steps,
        points=tuple(points),
        real=real.point,
        pictures=config.pictures,
        captions=tuple(bench.captions[: config.grid_pictures]),
        protocol=bench.protocol(),
        seconds_per_picture=Measurement.of(seconds, "s"),
    )


def _models(variant: Variant, inputs: StageInputs, context: StageContext) -> tuple[nn.Module, Any]:
    unet = inputs.base.unet if variant.unet is None else load_model(context.store, variant.unet)
    decoder = inputs.base.vae if variant.decoder is None else load_model(context.store, variant.decoder)
    return unet.to(context.device), decoder.to(context.device)
