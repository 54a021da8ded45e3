"""`coreml_export`: one component of the finished model as an .mlpackage that Apple's runtime can use."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from artifacts_schema.bundle import Component, ComponentReport
from artifacts_schema.config import CoremlExportConfig
from artifacts_schema.references import WeightsRef
from steps.context import StageContext
from steps.diffusion.schedule import NoiseSchedule
from steps.errors import ExportError
from steps.export.attention import SplitEinsumProcessor
from steps.export.bundle import assemble_bundle
from steps.export.contract import (
    Contract,
    package_name,
    text_encoder_contract,
    unet_contract,
    vae_decoder_contract,
)
from steps.export.convert import check_weights, export, weights_hash
from steps.export.precision import float32_operations
from steps.export.wrappers import DecoderForExport, TextEncoderForExport, UNetForExport
from steps.models import BaseModel, PredictionType, load_model
from steps.store.base import put_folder

__all__ = ["assemble_bundle", "run"]


def run(  # noqa: PLR0913 - one argument per input of the stage
    component: Component,
    base: BaseModel,
    unet_ref: WeightsRef,
    decoder_ref: WeightsRef | None,
    config: CoremlExportConfig,
    context: StageContext,
    *,
    prediction_type: PredictionType,
    attribution: str = "",
    model_id: str = "snapfusion",
) -> ComponentReport:
    """Convert one component, check the saved package and store it.

    The text encoder is the base's; `decoder_ref` None exports the base's own decoder. `prediction_type` is
    what `unet_ref` predicts; the exported UNet returns noise in either case. `attribution` states licence and
    data source and becomes the package's license. Raises ExportError naming the component.
    """
    if component not in ("text_encoder", "unet", "vae_decoder"):
        raise ExportError(f"expected the component text_encoder, unet or vae_decoder, found {component!r}")
    model, parents = _model(component, base, unet_ref, decoder_ref, context)
    check_weights(component, model)
    sha256 = weights_hash(model)
    velocity = component == "unet" and prediction_type == "v_prediction"
    schedule = NoiseSchedule.from_config(base.scheduler_config) if velocity else None
    wrapper, contract = _wrap(component, model, base, config, schedule)
    check_weights(component, wrapper)  # again: the scaling factor has changed a weight
    name = package_name(component, model_id)
    context.progress.start(f"{component}: Core ML", 1)
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        path = Path(folder) / name
        spec, cost = export(
            component,
            wrapper,
            contract,
            path,
            target=config.minimum_deployment_target,
            attribution=attribution,
            version=sha256[:12],
            velocity=velocity,
        )
        package = put_folder(context.store, path)
    context.progress.update(1)
    context.progress.close()
    return ComponentReport(
        stage=context.stage,
        parents=parents,
        config=config.model_dump(mode="json"),
        seed=context.seed,
        component=component,
        package_name=name,
        package=package,
        source_class=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in wrapper.parameters()),
        weights_sha256=sha256,
        inputs=contract[0],
        outputs=contract[1],
        prediction_type=prediction_type,
        output_prediction="epsilon" if component == "unet" else None,
        velocity_folded=velocity,
        scaling_factor=base.scaling_factor,
        decoder_factor=wrapper.factor if isinstance(wrapper, DecoderForExport) else None,
        float32_operations=float32_operations(spec),
        attribution=attribution,
        cost=cost,
    )


def _model(
    component: Component,
    base: BaseModel,
    unet_ref: WeightsRef,
    decoder_ref: WeightsRef | None,
    context: StageContext,
) -> tuple[Any, tuple[str, ...]]:
    """The torch model of a component and the identities it comes from."""
    if component == "unet":
        return load_model(context.store, unet_ref), (unet_ref.identity(),)
    if component == "text_encoder":
        return base.text_encoder, ()
    if decoder_ref is None:
        return base.vae, ()
    return load_model(context.store, decoder_ref), (decoder_ref.identity(),)


def _wrap(
    component: Component,
    model: Any,
    base: BaseModel,
    config: CoremlExportConfig,
    schedule: NoiseSchedule | None,
) -> tuple[nn.Module, Contract]:
    """The module to convert, and what the runtime expects of it."""
    tokens, width = base.tokenizer.model_max_length, int(base.text_encoder.config.hidden_size)
    if component == "text_encoder":
        return TextEncoderForExport(model), text_encoder_contract(tokens=tokens, width=width)
    if component == "unet":
        if config.attention == "split_einsum":
            model.set_attn_processor(SplitEinsumProcessor())
        contract = unet_contract(
            batch=config.batch_size, latent=base.latent_shape, tokens=tokens, width=width
        )
        return UNetForExport(model, schedule), contract
    # The latents are scaled by the base's factor, whatever a decoder's own configuration says.
    decoder = DecoderForExport(model, base.scaling_factor)
    scale = 2 ** (len(model.config.block_out_channels) - 1)
    return decoder, vae_decoder_contract(latent=base.latent_shape, scale=scale)
