"""`evaluation`: draws and measures one variant at every guidance scale.

Every variant sees the same captions and the same noise, so differences between variants are paired.
"""

import time
from typing import Any

from torch import nn

from artifacts_schema.base import Measurement
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import EvaluationRecord, RealPicturesRecord
from artifacts_schema.references import WeightsRef
from steps.evaluation.bench import Bench
from steps.evaluation.variants import variant_of
from steps.files.errors import EvaluationError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.stored import load_model
from steps.stages.real_pictures import load_real_features


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> EvaluationRecord:
    """Draw the variant `context.label` at every guidance scale and measure. Seeds do not depend on the variant.

    Raises EvaluationError where the real pictures were measured under another protocol.
    """
    config, variant = settings.evaluation, variant_of(context.label, settings)
    real: RealPicturesRecord = inputs.earlier("real_pictures")
    refs: list[WeightsRef | None] = [inputs.earlier("unet"), inputs.earlier("decoder")]
    bench = Bench(inputs, config, context)
    if real.protocol != bench.protocol():
        raise EvaluationError(
            f"the real pictures were measured under {real.protocol}, this is {bench.protocol()}"
        )
    features = load_real_features(context.store, real).numpy()
    unet, decoder = _models(refs[0], refs[1], inputs, context)
    context.progress.start(f"evaluation {variant.name}", config.pictures * len(config.guidance_scales))
    points, seconds = [], []
    for number, scale in enumerate(config.guidance_scales, start=1):
        started = time.monotonic()
        images = bench.draw(
            unet,
            decoder,
            scale,
            steps=variant.steps,
            prediction_type="v_prediction" if refs[0] else inputs.base.prediction_type,
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
            *(ref.identity() for ref in refs if ref is not None),
        ),
        config=config.meaning(),
        seed=context.seed,
        variant=variant.name,
        title=variant.title,
        sampler=variant.sampler,
        steps=variant.steps,
        points=tuple(points),
        real=real.point,
        pictures=config.pictures,
        captions=tuple(bench.captions),
        protocol=bench.protocol(),
        seconds_per_picture=Measurement.of(seconds, "s"),
    )


def _models(
    unet_ref: WeightsRef | None, decoder_ref: WeightsRef | None, inputs: StageInputs, context: StageContext
) -> tuple[nn.Module, Any]:
    unet = inputs.base.unet if unet_ref is None else load_model(context.store, unet_ref)
    decoder = inputs.base.vae if decoder_ref is None else load_model(context.store, decoder_ref)
    return unet.to(context.device), decoder.to(context.device)
