"""From a torch module to a checked .mlpackage."""

import hashlib
import json
import logging
import re
import resource
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Operation
from coremltools.proto.Model_pb2 import Model
from torch import nn
from torch.jit import ScriptModule

from artifacts_schema.bundle import Component, ExportCost, TensorContract
from steps.export import precision
from steps.export.contract import CONTRACT_REVISION, DESCRIPTIONS, VERSION_KEY, Contract, check_contract
from steps.export.precision import check_precision
from steps.files.errors import ExportError

logger = logging.getLogger(__name__)

_FLOAT16_MAX = 65504.0
_TARGETS = {"iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
_CAST = re.compile(r"cast_\d+(?=_|$)")
_DATE_KEY = "com.github.apple.coremltools.conversion_date"


def check_weights(component: Component, model: nn.Module) -> None:
    """Raises ExportError naming component and tensor where a weight is not finite in float16."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise ExportError(
                f"{component}: expected finite weights, found {bad} NaN or infinite values in {name}; "
                "export an earlier checkpoint"
            )
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest > _FLOAT16_MAX:
            raise ExportError(
                f"{component}: {name} reaches {largest:.3g}, beyond float16's {_FLOAT16_MAX:.0f}; "
                "lower the learning rate or raise the weight decay and train again"
            )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def export(
    component: Component,
    wrapper: nn.Module,
    contract: Contract,
    path: Path,
    *,
    target: str,
    attribution: str,
    version: str,
    velocity: bool = False,
) -> tuple[Model, ExportCost]:
    """Convert `wrapper` in evaluation mode, save it as `path`, read it back and check it.

    Returns the specification read back and what it cost. Raises ExportError when conversion fails or the
    saved model is not what the runtime expects.
    """
    started = time.monotonic()
    traced = _trace(wrapper, contract)
    after_trace = time.monotonic()
    model = _convert(component, traced, contract, target)
    after_convert = time.monotonic()
    _describe(model, component, contract, attribution=attribution, version=version)
    model.save(str(path))
    make_reproducible(path)
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    check_contract(component, spec, contract)
    if component == "unet":
        check_precision(spec, velocity=velocity)
    cost = ExportCost(
        trace_s=after_trace - started,
        convert_s=after_convert - after_trace,
        save_s=time.monotonic() - after_convert,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    logger.info(
        "component=%s trace=%.1fs convert=%.1fs save=%.1fs peak_memory=%.2fGiB",
        component,
        cost.trace_s,
        cost.convert_s,
        cost.save_s,
        cost.peak_memory_bytes / 2**30,
    )
    return spec, cost


def _trace(wrapper: nn.Module, contract: Contract) -> ScriptModule:
    # Zeros are valid token ids, timesteps and latents; values do not matter, only shapes do.
    examples = tuple(torch.zeros(tensor.shape) for tensor in contract[0])
    with known_warnings(), torch.no_grad():
        trace: Any = torch.jit.trace
        traced: ScriptModule = trace(wrapper.eval(), examples, check_trace=False, strict=False)
        return traced


def convert(
    name: str,
    wrapper: nn.Module,
    contract: Contract,
    target: str,
    *,
    may_be_float16: Callable[[Operation], bool] = precision.may_be_float16,
) -> ct.models.MLModel:
    """A coremltools model of `wrapper` in evaluation mode, not saved. `may_be_float16` says so of an operation.

    Raises ExportError naming `name` when coremltools cannot convert it.
    """
    return _convert(name, _trace(wrapper, contract), contract, target, may_be_float16)


def _convert(
    component: str,
    traced: ScriptModule,
    contract: Contract,
    target: str,
    may_be_float16: Callable[[Operation], bool] = precision.may_be_float16,
) -> ct.models.MLModel:
    inputs, outputs = contract
    with known_warnings():
        try:
            return ct.convert(
                traced,
                convert_to="mlprogram",
                minimum_deployment_target=_TARGETS[target],
                inputs=[ct.TensorType(name=t.name, shape=t.shape, dtype=_numpy(t)) for t in inputs],
                outputs=[ct.TensorType(name=t.name, dtype=_numpy(t)) for t in outputs],
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=may_be_float16),
                skip_model_load=True,
            )
        # coremltools raises whatever its frontend meets; only the message tells these failures apart.
        except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError, AssertionError) as error:
            # The frames hold the half-converted model and its scratch folder.
            traceback.clear_frames(error.__traceback__)
            raise ExportError(
                f"{component}: coremltools {ct.__version__} could not convert it for {target}: {error}"
            ) from error


@contextmanager
def known_warnings() -> Iterator[None]:
    """Silences what tracing and converting always warn of, and nothing else."""
    with warnings.catch_warnings():
        # Shapes become constants, which is what an exported model of fixed shapes wants.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # coremltools converts CLIP from torch.jit only, which reads every property of a module.
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # CLIP's mask is float32's lowest number; in float16 coremltools makes it a finite one.
        warnings.filterwarnings("ignore", message="overflow encountered in cast", category=RuntimeWarning)
        # coremltools leaves the removal of its scratch folder to the garbage collector.
        warnings.filterwarnings("ignore", message="Implicitly cleaning up", category=ResourceWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"coremltools\.")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"coremltools\.")
        yield


def _numpy(tensor: TensorContract) -> type[np.floating]:
    return np.float16 if tensor.dtype == "float16" else np.float32


def _describe(
    model: ct.models.MLModel, component: Component, contract: Contract, *, attribution: str, version: str
) -> None:
    model.author = "SnapFusion pipeline"
    model.license = attribution or "Not stated; see the LICENSE of the bundle."
    model.version = version
    model.short_description = DESCRIPTIONS[component]
    for tensor in contract[0]:
        model.input_description[tensor.name] = tensor.description
    for tensor in contract[1]:
        model.output_description[tensor.name] = tensor.description
    model.user_defined_metadata[VERSION_KEY] = CONTRACT_REVISION


def make_reproducible(package: Path) -> None:
    """Take dates and random identifiers out of a saved package, so that equal models are equal files."""
    manifest_path = package / "Manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    entries = manifest["itemInfoEntries"]
    renamed = {
        key: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper() for key, entry in entries.items()
    }
    manifest["itemInfoEntries"] = {renamed[key]: entry for key, entry in entries.items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    manifest_path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    root = next(e for k, e in manifest["itemInfoEntries"].items() if k == manifest["rootModelIdentifier"])
    model_path = package / "Data" / root["path"]
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(model_path.read_bytes())
    spec.description.metadata.userDefined.pop(_DATE_KEY, None)
    _number_casts(spec)
    model_path.write_bytes(spec.SerializeToString(deterministic=True))


def _number_casts(spec: Model) -> None:
    """Number the program's casts in order: coremltools numbers them as its passes meet them, which varies."""
    numbers: dict[str, str] = {}

    def renamed(name: str) -> str:
        found = _CAST.match(name)
        if not found:
            return name
        return numbers.setdefault(found[0], f"cast_{len(numbers)}") + name[found.end() :]

    for block in spec.mlProgram.functions["main"].block_specializations.values():
        for op in block.operations:
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.HasField("name"):
                        binding.name = renamed(binding.name)
            for output in op.outputs:
                output.name = renamed(output.name)
            names = op.attributes["name"].immediateValue.tensor.strings.values
            names[:] = [renamed(name) for name in names]
        block.outputs[:] = [renamed(name) for name in block.outputs]
