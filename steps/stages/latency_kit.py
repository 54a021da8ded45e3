"""The latency kit: every distinct block of a base as an .mlpackage, for a device to time (`measure_on_mac.py`).

What a device measures comes back through `latency_profile.table` (`steps.latency.device`).
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from artifacts_schema.base import content_hash
from artifacts_schema.bundle import TensorContract
from artifacts_schema.device import BASELINE, LatencyKit, TimedModel, TimedPart
from artifacts_schema.latency import LatencyRow, PartKind
from artifacts_schema.result_configs import CoremlExportConfig
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.export.attention import SplitEinsumProcessor
from steps.export.contract import Contract, text_encoder_contract, unet_contract, vae_decoder_contract
from steps.export.convert import convert, make_reproducible
from steps.export.precision import may_be_float16, may_be_float16_in_a_block
from steps.export.wrappers import DecoderForExport, TextEncoderForExport, UNetForExport
from steps.files.disk import check_disk
from steps.files.errors import ExportError
from steps.files.progress import NullProgress, Progress
from steps.latency import measure_on_mac
from steps.latency.parts import Part, unet_parts
from steps.models.base import BaseModel
from steps.stages import latency_profile

logger = logging.getLogger(__name__)

_SCRIPT = Path(measure_on_mac.__file__)
_DISK_COPIES = 3  # parts, the whole UNet, and coremltools' scratch copy of one of them, in float16
_INPUTS: Mapping[PartKind, int] = {"attention": 2, "resnet": 2}  # others take one
_BASELINE_SHAPE = (1, 8, 8, 8)


def export_blocks(
    base: BaseModel,
    folder: Path,
    config: CoremlExportConfig,
    *,
    progress: Progress | None = None,
) -> LatencyKit:
    """Write packages, `manifest.json` and `measure_on_mac.py` into the empty `folder`.

    Blocks of equal structure and input shapes share a package. `config` gives target, attention and batch size; the
    base's attention processors are replaced as it says. Raises ExportError for a folder that is not empty or a block
    that cannot be converted, DiskFullError when there is no room.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"expected an empty folder for the latency kit, found files in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    weights = sum(p.numel() for model in (base.unet, base.text_encoder, base.vae) for p in model.parameters())
    check_disk(folder, 2 * weights * _DISK_COPIES, "the latency kit")
    if config.attention == "split_einsum":
        base.unet.set_attn_processor(SplitEinsumProcessor())
    profile = LatencyProfileConfig(backend="macs", batch_size=config.batch_size)
    counted = latency_profile.count(base, profile)  # shapes, kinds and parameters of every row
    modules = _part_modules(base, counted.rows) | _whole_models(base, config.batch_size)
    bar = progress or NullProgress()
    bar.start("latency kit", len(modules) + 1)
    models, parts = (
        {BASELINE: _write(folder, BASELINE, _OneOperation(), _contract([_BASELINE_SHAPE]), config)},
        {},
    )
    for number, (name, (module, contract)) in enumerate(modules.items(), start=2):
        row = counted.rows[name]
        key = _model_id(row.kind, module, contract)
        if key not in models:
            models[key] = _write(folder, key, module, contract, config)
        shapes = tuple(tensor.shape for tensor in contract[0])
        parts[name] = TimedPart(model=key, kind=row.kind, parameters=row.parameters, input_shapes=shapes)
        bar.update(number)
    bar.close()
    kit = LatencyKit(
        config=config.model_dump(
            mode="json", include={"minimum_deployment_target", "attention", "batch_size"}
        ),
        model=counted.model,
        batch=counted.batch,
        latent_shape=counted.latent_shape,
        tokens=counted.tokens,
        minimum_deployment_target=config.minimum_deployment_target,
        attention=config.attention,
        models=models,
        parts=parts,
    )
    (folder / "manifest.json").write_text(kit.to_json() + "\n", encoding="utf-8")
    shutil.copyfile(_SCRIPT, folder / _SCRIPT.name)
    logger.info("kit=%s models=%d parts=%d", folder, len(models), len(parts))
    return kit


class _Block(nn.Module):
    """The modules of a part one after the other, called as the UNet calls them."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.kind = part.kind
        self.parts = nn.ModuleList(part.modules)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The hidden input and, of an attention the text (B, tokens, D), of a ResNet the time embedding (B, T)."""
        if self.kind == "attention":
            attended: Tensor = self.parts[0](x, encoder_hidden_states=other, return_dict=False)[0]
            return attended
        if self.kind == "resnet":
            hidden: Tensor = self.parts[0](x, other)
            return hidden
        for part in self.parts:
            x = part(x)
        return x


class _OneOperation(nn.Module):
    """As little as a program can do."""

    def forward(self, x: Tensor) -> Tensor:
        """The positive part of x."""
        return torch.relu(x)


def _part_modules(base: BaseModel, rows: Mapping[str, LatencyRow]) -> dict[str, tuple[nn.Module, Contract]]:
    found: dict[str, tuple[nn.Module, Contract]] = {}
    for part in unet_parts(base.unet):
        shapes = rows[part.id].input_shapes[: _INPUTS.get(part.kind, 1)]
        name = "timestep" if part.kind == "time_embedding" else "x"
        found[part.id] = (_Block(part), _contract(shapes, name))
    return found


def _whole_models(base: BaseModel, batch: int) -> dict[str, tuple[nn.Module, Contract]]:
    """Text encoder and decoder as the runtime calls them, and a guided step of the UNet."""
    tokens, width = base.tokenizer.model_max_length, int(base.text_encoder.config.hidden_size)
    latent, scale = base.latent_shape, 2 ** (len(base.vae.config.block_out_channels) - 1)
    return {
        "unet": (
            UNetForExport(base.unet, None),
            unet_contract(batch=batch, latent=latent, tokens=tokens, width=width),
        ),
        "text_encoder": (
            TextEncoderForExport(base.text_encoder),
            text_encoder_contract(tokens=tokens, width=width),
        ),
        "decoder": (
            DecoderForExport(base.vae, base.scaling_factor),
            vae_decoder_contract(latent=latent, scale=scale),
        ),
    }


def _contract(shapes: "list[tuple[int, ...]] | tuple[tuple[int, ...], ...]", first: str = "x") -> Contract:
    """float16 in and out: inside of the network, nothing else passes between blocks."""
    names = [first, "other"][: len(shapes)]
    inputs = tuple(
        TensorContract(name=name, dtype="float16", shape=shape, description="Noise.")
        for name, shape in zip(names, shapes, strict=True)
    )
    # The shape of the output is the program's affair; only its name and type are asked for.
    return inputs, (TensorContract(name="y", dtype="float16", shape=(), description="Not looked at."),)


def _model_id(kind: PartKind, module: nn.Module, contract: Contract) -> str:
    """Equal for modules that differ in weights only."""
    heads = [part.heads for part in module.modules() if isinstance(part, Attention)]
    shapes = [tensor.shape for tensor in contract[0]]
    return f"{kind}_{content_hash({'module': repr(module), 'heads': heads, 'inputs': shapes})[:12]}"


def _write(
    folder: Path, name: str, module: nn.Module, contract: Contract, config: CoremlExportConfig
) -> TimedModel:
    package = folder / f"{name}.mlpackage"
    # A block ends in an addition, too, which is no conversion to noise.
    selector = may_be_float16_in_a_block if isinstance(module, _Block) else may_be_float16
    model = convert(name, module, contract, config.minimum_deployment_target, may_be_float16=selector)
    model.save(str(package))
    make_reproducible(package)
    return TimedModel(package=package.name, sha256=measure_on_mac.package_hash(package), inputs=contract[0])
