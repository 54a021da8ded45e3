"""`coreml_export`: one component of the finished model as an .mlpackage that Apple's runtime can use."""

import gc
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn

from artifacts_schema.bundle import Component, ComponentReport
from artifacts_schema.config import CoremlExportConfig, SnapFusionConfig
from artifacts_schema.references import WeightsRef
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.schedule import NoiseSchedule
from steps.export.attention import SplitEinsumProcessor
from steps.export.bundle import assemble_bundle
from steps.export.chunks import split_package
from steps.export.contract import (
    Contract,
    package_name,
    safety_checker_contract,
    text_encoder_contract,
    unet_contract,
    vae_decoder_contract,
    vae_encoder_contract,
)
from steps.export.convert import check_weights, export, weights_hash
from steps.export.optional import EncoderForExport, SafetyCheckerForExport, load_safety_checker
from steps.export.precision import float32_operations
from steps.export.program_check import Sample, compare, describe, torch_results
from steps.export.samples import (
    Pictures,
    decoder_samples,
    encoder_samples,
    safety_samples,
    text_samples,
    unet_samples,
)
from steps.export.wrappers import DecoderForExport, TextEncoderForExport, UNetForExport
from steps.files.disk import check_disk
from steps.files.errors import ExportError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel, WeightsOf
from steps.models.stored import load_model
from steps.store.base import put_folder

__all__ = ["NEEDED_WEIGHTS", "assemble_bundle", "run"]

NEEDED_WEIGHTS: dict[Component, tuple[WeightsOf, ...]] = {
    "text_encoder": ("text_encoder",),
    "unet": ("text_encoder",),  # of which its samples are made
    "vae_decoder": ("vae",),
    "vae_encoder": ("vae",),
    "safety_checker": (),
}
"""Components of the base whose weights the export reads; a large base need not be in memory whole."""

# Of the weights' float32 bytes: the float16 package, its copy in coremltools' scratch folder and in the store.
_DISK_COPIES = 1.5
_DISK_CHUNKS = 1.5  # the chunks, and their copies likewise
_DISK_SPARE = 32 << 20


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> ComponentReport:
    """The component `context.label` of what ships: the student, the small decoder, the base for all others."""
    component = cast(Component, context.label)
    weights: WeightsRef | None = inputs.earlier("weights")
    return export_component(
        component,
        inputs.base_with(NEEDED_WEIGHTS[component]),
        weights,
        weights,
        Pictures.of(inputs.data, config.coreml_export.program_check.captions),
        config.coreml_export,
        context,
        prediction_type="v_prediction",
        attribution=inputs.data.ref.attribution,
    )


def export_component(  # noqa: PLR0913 - one argument per input of the stage
    component: Component,
    base: BaseModel,
    unet_ref: WeightsRef | None,
    decoder_ref: WeightsRef | None,
    pictures: Pictures,
    config: CoremlExportConfig,
    context: StageContext,
    *,
    prediction_type: PredictionType,
    attribution: str = "",
    model_id: str = "snapfusion",
) -> ComponentReport:
    """Convert one component, check the saved package against the torch model and store it.

    The text encoder is the base's, and so are picture encoder and safety checker; `decoder_ref` None exports the
    base's own decoder. `prediction_type` is
    what `unet_ref` predicts; the exported UNet returns noise in either case. The package is checked on `pictures`.
    `attribution` states licence and data source and becomes the package's license. Raises ExportError naming the
    component, also for a package that misses a gate of `config.program_check`, and DiskFullError before anything is
    converted.
    """
    if component not in get_args(Component):
        raise ExportError(
            f"expected one of the components {', '.join(get_args(Component))}, found {component!r}"
        )
    model, parents = _model(component, base, unet_ref, decoder_ref, context)
    check_weights(component, model)
    sha256 = weights_hash(model)
    velocity = component == "unet" and prediction_type == "v_prediction"
    schedule = NoiseSchedule.from_config(base.scheduler_config) if velocity else None
    wrapper, contract = _wrap(component, model, base, config, schedule)
    check_weights(component, wrapper)  # again: the scaling factor has changed a weight
    name = package_name(component, model_id)
    parameters = sum(parameter.numel() for parameter in wrapper.parameters())
    chunked = component == "unet" and config.chunked_unet
    copies = _DISK_COPIES + (_DISK_CHUNKS if chunked else 0)
    check_disk(context.work, int(4 * parameters * copies) + _DISK_SPARE, f"{component}: its package")
    source_class = type(model).__name__
    factor = wrapper.factor if isinstance(wrapper, DecoderForExport) else None
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
        gc.collect()  # the converter leaves over a gigabyte at Stable Diffusion's size
        packages = split_package(component, path, contract, Path(folder)) if chunked else (path,)
        started = time.monotonic()
        samples, quantity = _samples(component, contract, base, pictures, config, velocity=velocity)
        expected = torch_results(wrapper, contract, samples, in_place=component == "unet")
        del model, wrapper  # a large UNet and its program together would not fit into 10 GB
        gates = config.program_check
        parity = compare(component, packages, contract, expected, quantity=quantity, gates=gates)
        cost = cost.model_copy(
            update={
                "check_s": time.monotonic() - started,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
        if chunked:
            shutil.rmtree(path)
        package = put_folder(context.store, Path(folder) if chunked else path)
    context.progress.update(1)
    context.progress.close()
    return ComponentReport(
        stage=context.stage,
        parents=parents,
        config=config.meaning_for(component),
        seed=context.seed,
        component=component,
        package_name=name,
        package=package,
        chunks=tuple(path.name for path in packages) if chunked else (),
        source_class=source_class,
        parameters=parameters,
        weights_sha256=sha256,
        inputs=contract[0],
        outputs=contract[1],
        prediction_type=prediction_type,
        output_prediction="epsilon" if component == "unet" else None,
        velocity_folded=velocity,
        scaling_factor=base.scaling_factor,
        decoder_factor=factor,
        float32_operations=float32_operations(spec),
        vocabulary=base.text_encoder.config.vocab_size if component == "text_encoder" else None,
        attribution=attribution,
        parity=parity,
        parity_note=describe(parity),
        cost=cost,
    )


def _samples(  # noqa: PLR0913 - what the samples are made of
    component: Component,
    contract: Contract,
    base: BaseModel,
    pictures: Pictures,
    config: CoremlExportConfig,
    *,
    velocity: bool,
) -> tuple[Iterable[Sample], str]:
    """What the package is tried on, and the name of the quantity that is compared."""
    if component == "text_encoder":
        return text_samples(base, pictures.captions), "hidden states"
    if component == "unet":
        samples = unet_samples(
            base, pictures, config.program_check, batch=config.batch_size, velocity=velocity
        )
        return samples, "recovered velocity" if velocity else "noise"
    if component == "vae_decoder":
        return decoder_samples(pictures), "picture"
    if component == "vae_encoder":
        return encoder_samples(pictures), "moments of the latents"
    return safety_samples(pictures, side=contract[0][0].shape[-1]), "scores of the concepts"


def _model(
    component: Component,
    base: BaseModel,
    unet_ref: WeightsRef | None,
    decoder_ref: WeightsRef | None,
    context: StageContext,
) -> tuple[Any, tuple[str, ...]]:
    """The torch model of a component and the identities it comes from."""
    if component == "text_encoder":
        return base.text_encoder, ()
    if component == "safety_checker":
        return load_safety_checker(base.path), ()
    ref = {"unet": unet_ref, "vae_decoder": decoder_ref}.get(component)
    if ref is not None:
        return load_model(context.store, ref), (ref.identity(),)
    if component == "unet":
        raise ExportError("unet: expected the weights to export, found none")
    return base.vae, ()


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
    if component == "safety_checker":
        side = int(model.config.vision_config.image_size)
        concepts = len(model.concept_embeds_weights)
        return SafetyCheckerForExport(model), safety_checker_contract(side=side, concepts=concepts)
    scale = 2 ** (len(model.config.block_out_channels) - 1)
    if component == "vae_encoder":
        encoder = EncoderForExport(model, base.scaling_factor)
        return encoder, vae_encoder_contract(latent=base.latent_shape, scale=scale)
    # The latents are scaled by the base's factor, whatever a decoder's own configuration says.
    decoder = DecoderForExport(model, base.scaling_factor)
    return decoder, vae_decoder_contract(latent=base.latent_shape, scale=scale)
