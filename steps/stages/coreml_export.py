"""`coreml_export`: one component of the finished model as an .mlpackage that Apple's runtime can use."""

import gc
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from artifacts_schema.bundle import Component, ComponentReport, ExportCost, Parity
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import made_by
from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlExportConfig
from steps.diffusion.parameterization import PredictionType
from steps.export.chunks import split_package
from steps.export.components import COMPONENTS, Exportable, Source, exportable
from steps.export.contract import Contract, package_name
from steps.export.convert import check_weights, export, weights_hash
from steps.export.precision import float32_operations
from steps.export.program_check import TorchResult, compare, describe, torch_results
from steps.export.samples import Pictures
from steps.files.disk import check_disk
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel
from steps.store.base import put_folder

# Of the weights' float32 bytes: the float16 package, its copy in coremltools' scratch folder and in the store.
_DISK_COPIES = 1.5
_DISK_CHUNKS = 1.5  # the chunks, and their copies likewise
_DISK_SPARE = 32 << 20


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> ComponentReport:
    """The component `context.label` of what ships: the student, the small decoder, the base for all others, and for those
    whose training was skipped.
    """
    component, weights = cast(Component, context.label), inputs.earlier("weights")
    needs = COMPONENTS[component].needs + (("unet",) if component == "unet" and weights is None else ())
    base = inputs.base_with(needs)
    own_unet = not made_by("student_8", config.run.skip)
    return export_component(
        component,
        base,
        Pictures.of(inputs.data, config.coreml_export.program_check.captions),
        config.coreml_export,
        context,
        weights=weights,
        prediction_type=base.prediction_type if own_unet else "v_prediction",
        attribution=inputs.data.ref.attribution,
    )


def export_component(
    component: Component,
    base: BaseModel,
    pictures: Pictures,
    config: CoremlExportConfig,
    context: StageContext,
    *,
    weights: WeightsRef | None,
    prediction_type: PredictionType,
    attribution: str = "",
    model_id: str = "snapfusion",
) -> ComponentReport:
    """Convert one component, check the saved package against the torch model and store it.

    `weights` are those of a UNet or a decoder; without them these are the base's own, as all other components always
    are. `prediction_type` is what the UNet predicts; the exported one returns noise in either case. The package is
    checked on `pictures`. `attribution` states licence and data source and becomes the package's
    license. Raises ExportError naming the component, also for a package that misses a gate of `config.program_check`,
    and DiskFullError before anything is converted.
    """
    source = Source(base, weights, prediction_type, config, context.store)
    described, name = exportable(component, source), package_name(component, model_id)
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        made = _converted(described, pictures, Path(folder) / name, context, attribution)
        parity, cost = _checked(described, made)
        package = put_folder(context.store, Path(folder) if described.chunked else made.packages[0])
    context.progress.update(1)
    context.progress.close()
    return ComponentReport(
        stage=context.stage,
        parents=() if described.stored is None else (described.stored.identity(),),
        config=config.meaning_for(component),
        seed=context.seed,
        component=component,
        package_name=name,
        package=package,
        chunks=tuple(path.name for path in made.packages) if described.chunked else (),
        source_class=made.source_class,
        parameters=made.parameters,
        weights_sha256=made.sha256,
        inputs=made.contract[0],
        outputs=made.contract[1],
        prediction_type=prediction_type,
        output_prediction=described.output_prediction,
        velocity_folded=described.velocity,
        scaling_factor=base.scaling_factor,
        decoder_factor=described.decoder_factor,
        float32_operations=made.float32_operations,
        vocabulary=described.vocabulary,
        attribution=attribution,
        parity=parity,
        parity_note=describe(parity),
        cost=cost,
    )


@dataclass(frozen=True)
class _Converted:
    """Saved packages, in the order they run, and what is left of the torch model once it is gone."""

    packages: tuple[Path, ...]
    contract: Contract
    expected: list[TorchResult]
    source_class: str
    parameters: int
    sha256: str
    float32_operations: dict[str, int]
    cost: ExportCost


def _converted(
    described: Exportable, pictures: Pictures, path: Path, context: StageContext, attribution: str
) -> _Converted:
    """Write the package `path`, or its chunks beside it, and let torch compute what it is compared with.

    The model is let go at the end: a large UNet and its program together would not fit into 10 GB.
    """
    component = described.name
    model = described.model()
    check_weights(component, model)
    sha256 = weights_hash(model)
    wrapper, contract = described.wrapper(model), described.contract(model)
    check_weights(component, wrapper)  # again: the scaling factor has changed a weight
    parameters = sum(parameter.numel() for parameter in wrapper.parameters())
    copies = _DISK_COPIES + (_DISK_CHUNKS if described.chunked else 0)
    check_disk(context.work, int(4 * parameters * copies) + _DISK_SPARE, f"{component}: its package")
    context.progress.start(f"{component}: Core ML", 1)
    spec, cost = export(
        component,
        wrapper,
        contract,
        path,
        target=described.source.config.minimum_deployment_target,
        attribution=attribution,
        version=sha256[:12],
        velocity=described.velocity,
    )
    gc.collect()  # the converter leaves over a gigabyte at Stable Diffusion's size
    packages: tuple[Path, ...] = (path,)
    if described.chunked:
        packages = split_package(component, path, contract, path.parent)
        shutil.rmtree(path)
    started = time.monotonic()
    samples = described.samples(pictures, contract)
    expected = torch_results(wrapper, contract, samples, in_place=described.own_model)
    cost = cost.model_copy(update={"check_s": time.monotonic() - started})
    operations, source_class = float32_operations(spec), type(model).__name__
    return _Converted(packages, contract, expected, source_class, parameters, sha256, operations, cost)


def _checked(described: Exportable, made: _Converted) -> tuple[Parity, ExportCost]:
    """How close the packages come to torch, and what everything has cost. Raises ExportError, see `compare`."""
    started = time.monotonic()
    parity = compare(
        described.name,
        made.packages,
        made.contract,
        made.expected,
        quantity=described.quantity,
        gates=described.source.config.program_check,
    )
    check_s = made.cost.check_s + time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return parity, made.cost.model_copy(update={"check_s": check_s, "peak_memory_bytes": peak})
