"""`guidance_selection`: the guidance scale of one variant, chosen on the validation split."""

from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import GuidancePoint, GuidanceRecord, RealPicturesRecord
from artifacts_schema.references import WeightsRef
from steps.evaluation.bench import Bench, groups_of
from steps.evaluation.distances import kernel_distance
from steps.evaluation.variants import Variant, variant_of
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.stored import load_model
from steps.stages.real_pictures import load_reference


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> GuidanceRecord:
    """Draw the variant `context.label` at every scale of `evaluation.guidance_scales` and choose one."""
    config, variant = settings.evaluation, variant_of(context.label, settings)
    real: RealPicturesRecord = inputs.earlier("real_pictures")
    bench = Bench(inputs, "validation", config.features, context)
    scales, count = config.guidance_scales, config.validation_pictures
    points: list[GuidancePoint] = []
    captions = bench.drawn(count)
    if len(scales) > 1:
        models = models_of(inputs, context)
        context.progress.start(f"guidance of {variant.name}", count * len(scales))
        reference = load_reference(context.store, real.splits["validation"])
        bench.check_environment(reference[0])
        for number, scale in enumerate(scales, start=1):
            images = drawn(bench, models, variant, count, scale)
            points.append(bench.measure(images, captions, scale, reference))
            context.progress.update(number * count)
        context.progress.close()
    return GuidanceRecord(
        stage="guidance_selection",
        parents=(real.identity(),),
        config={
            "guidance_scales": list(scales),
            "validation_pictures": count,
            "features": config.features,
            "steps": variant.steps,
        },
        seed=context.seed,
        variant=variant.name,
        guidance_scale=choose(points, captions, real, context) if points else scales[0],
        points=tuple(points),
        captions=tuple(captions) if points else (),
        protocol=bench.protocol(real.splits["validation"], count),
    )


def choose(
    points: list[GuidancePoint], captions: list[str], real: RealPicturesRecord, context: StageContext
) -> float:
    """The scale of the smallest distance; of those that cannot be told from it, the one of the highest CLIP score."""
    reference, names = load_reference(context.store, real.splits["validation"])
    found = [
        kernel_distance(
            load_file(context.store.path_of(point.images))["features"].numpy(),
            reference,
            groups=groups_of(captions),
            real_groups=groups_of(names),
        )
        for point in points
    ]
    best = min(found, key=lambda estimate: estimate.value)
    alike = [
        point
        for point, estimate in zip(points, found, strict=True)
        if estimate is best or estimate.minus(best).interval().low <= 0.0
    ]
    return max(alike, key=lambda point: point.clip_score.value).guidance_scale


def models_of(inputs: StageInputs, context: StageContext) -> tuple[nn.Module, Any, Any]:
    """UNet and decoder of a variant, on the stage's device, and what the UNet predicts."""
    unet_ref: WeightsRef | None = inputs.earlier("unet")
    decoder_ref: WeightsRef | None = inputs.earlier("decoder")
    unet = inputs.base.unet if unet_ref is None else load_model(context.store, unet_ref)
    decoder = inputs.base.vae if decoder_ref is None else load_model(context.store, decoder_ref)
    prediction = inputs.base.prediction_type if unet_ref is None else "v_prediction"
    return unet.to(context.device), decoder.to(context.device), prediction


def drawn(bench: Bench, models: tuple[Any, Any, Any], variant: Variant, count: int, scale: float) -> Tensor:
    """uint8 pictures (count, 3, H, W) of a variant at one guidance scale."""
    unet, decoder, prediction = models
    return bench.draw(
        unet,
        decoder,
        count,
        scale,
        steps=variant.steps,
        prediction_type=prediction,
        sampler=variant.sampler,
    )
