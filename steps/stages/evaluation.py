"""`evaluation`: draws and measures one variant at the guidance scale that was chosen for it.

Every variant sees the same captions and the same noise, so differences between variants are paired.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from artifacts_schema.base import Measurement
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import EvaluationRecord, GuidancePoint, GuidanceRecord, RealPicturesRecord
from artifacts_schema.protocol import Part
from artifacts_schema.result_configs import EvaluationConfig
from steps.evaluation.bench import Bench
from steps.evaluation.variants import variant_of
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.stages.guidance_selection import drawn, models_of
from steps.stages.real_pictures import load_reference

PARTS_APART: tuple[Part, ...] = ("seen", "novel")


Drawing = Callable[[Bench, int], Tensor]
"""So many uint8 pictures (n, 3, H, W) of a bench's captions."""


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> EvaluationRecord:
    """Draw `evaluation.pictures` of the variant `context.label` and measure them. Seeds do not depend on the variant."""
    models, variant = models_of(inputs, context), variant_of(context.label, settings)
    guidance: GuidanceRecord = inputs.earlier("guidance")
    return _measured(
        inputs,
        settings,
        context,
        lambda bench, count: drawn(bench, models, variant, count, guidance.guidance_scale),
    )


def run_bundle(
    folder: Path, inputs: StageInputs, settings: SnapFusionConfig, context: StageContext
) -> EvaluationRecord:
    """The same of the bundle in `folder`: its packages as they ship, run by the interpreter, float16 results rounded."""
    from steps.export.bundle_run import Bundle  # coremltools takes seconds to import

    guidance: GuidanceRecord = inputs.earlier("guidance")
    bundle = Bundle.open(folder).guided(guidance.guidance_scale)

    def draw(bench: Bench, count: int) -> Tensor:
        noise, parts = bench.noise(count), []
        for index, caption in enumerate(bench.drawn(count)):
            parts.append(bench.sized(bundle.draw(caption, noise[index : index + 1]).pixels))
            context.progress.update(index + 1)
        return torch.cat(parts)

    return _measured(inputs, settings, context, draw)


def _measured(
    inputs: StageInputs, settings: SnapFusionConfig, context: StageContext, draw: Drawing
) -> EvaluationRecord:
    config, variant = settings.evaluation, variant_of(context.label, settings)
    record: RealPicturesRecord = inputs.earlier("real_pictures")
    guidance: GuidanceRecord = inputs.earlier("guidance")
    real, scale = record.splits[config.split], guidance.guidance_scale
    bench = Bench(inputs, config.split, config.features, context)
    reference = load_reference(context.store, real)
    bench.check_environment(reference[0])
    context.progress.start(f"evaluation {variant.name}", config.pictures)
    started = time.monotonic()
    images = draw(bench, config.pictures)
    seconds = (time.monotonic() - started) / config.pictures
    context.progress.update(config.pictures)
    captions = bench.drawn(config.pictures)
    point = bench.measure(images, captions, scale, reference)
    apart = _apart(inputs, config, context, scale, draw) if config.apart_pictures else {}
    context.progress.close()
    refs = (inputs.earlier("unet"), inputs.earlier("decoder"))
    return EvaluationRecord(
        stage="evaluation",
        parents=(
            record.identity(),
            guidance.identity(),
            *(ref.identity() for ref in refs if ref is not None),
        ),
        config={"features": config.features, "pictures": config.pictures, "split": config.split},
        seed=context.seed,
        variant=variant.name,
        title=variant.title,
        sampler=variant.sampler,
        steps=variant.steps,
        point=point,
        real=real,
        pictures=config.pictures,
        captions=tuple(captions),
        protocol=bench.protocol(real, config.pictures),
        seconds_per_picture=Measurement.of([seconds], "s"),
        apart=apart,
    )


def _apart(
    inputs: StageInputs, config: EvaluationConfig, context: StageContext, scale: float, draw: Drawing
) -> dict[str, GuidancePoint]:
    """The same variant on captions of other categories and with unknown words, each against their own real pictures."""
    found: dict[str, GuidancePoint] = {}
    for part in PARTS_APART:
        bench = Bench(inputs, config.split, config.features, context, part)
        images = draw(bench, config.apart_pictures)
        real = bench.features(bench.subject.images()).numpy()
        captions = bench.drawn(config.apart_pictures)
        found[part] = bench.measure(images, captions, scale, (real, bench.captions))
    return found
