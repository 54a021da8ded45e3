"""`evaluation`: draws and measures one variant at the guidance scale that was chosen for it.

Every variant sees the same captions and the same noise, so differences between variants are paired.
"""

import time

from artifacts_schema.base import Measurement
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import EvaluationRecord, GuidanceRecord, RealPicturesRecord
from steps.evaluation.bench import Bench
from steps.evaluation.variants import variant_of
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.stages.guidance_selection import models_of
from steps.stages.real_pictures import load_reference


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> EvaluationRecord:
    """Draw `evaluation.pictures` of the variant `context.label` and measure them. Seeds do not depend on the variant."""
    config, variant = settings.evaluation, variant_of(context.label, settings)
    record: RealPicturesRecord = inputs.earlier("real_pictures")
    guidance: GuidanceRecord = inputs.earlier("guidance")
    real = record.splits[config.split]
    bench = Bench(inputs, config.split, config.features, context)
    unet, decoder, prediction = models_of(inputs, context)
    context.progress.start(f"evaluation {variant.name}", config.pictures)
    started = time.monotonic()
    images = bench.draw(
        unet,
        decoder,
        config.pictures,
        guidance.guidance_scale,
        steps=variant.steps,
        prediction_type=prediction,
        sampler=variant.sampler,
    )
    seconds = (time.monotonic() - started) / config.pictures
    context.progress.update(config.pictures)
    captions = bench.drawn(config.pictures)
    point = bench.measure(images, captions, guidance.guidance_scale, load_reference(context.store, real))
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
    )
