"""`latency_profile`: how long every block of the base takes, and whether the blocks explain the whole.

P section 3.1: architecture evolution looks latencies up in a table measured once, per block, on the target
device.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from artifacts_schema.base import Measurement
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.latency import LatencyRow, LatencyTable
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.files.errors import ConfigError, LatencyTableError
from steps.files.processor import processor_name
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.latency.macs import count_macs
from steps.latency.parts import Part, unet_parts
from steps.latency.table import check_explained, import_table
from steps.latency.timing import Clock, clock_for, quiet, time_call, time_parts
from steps.models.base import BaseModel
from steps.unet.blocks import config_hash

logger = logging.getLogger(__name__)
WholeModel = Literal["unet", "text_encoder", "decoder"]

_ATTEMPTS = 3  # a table that does not add up is measured again: on a shared machine one bad minute is common


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> LatencyTable:
    """The stage, see `profile`."""
    return profile(inputs.base, config.latency_profile, context)


def profile(base: BaseModel, config: LatencyProfileConfig, context: StageContext) -> LatencyTable:
    """Measure, count or import the base's latency table.

    Raises LatencyTableError when an imported table does not belong to this base, or when the parts do not add
    up to the whole; ConfigError when the backend's device is not there.
    """
    if config.table is not None:
        table = import_table(
            Path(config.table),
            backend=config.backend,
            unet_config=base.unet.config,
            batch=config.batch_size,
            latent_shape=base.latent_shape,
            tokens=base.tokenizer.model_max_length,
        )
    elif config.backend == "macs":
        table = count(base, config)
    else:
        table = measure(base, config, context)
    check_explained(table, config.max_unexplained)
    logger.info(
        "backend=%s guided_step=%.4g%s parts=%.1f%%",
        table.backend,
        table.whole,
        table.unit,
        100 * table.explained,
    )
    return table.model_copy(update={"config": config.meaning(), "seed": context.seed})


def measure(base: BaseModel, config: LatencyProfileConfig, context: StageContext) -> LatencyTable:
    """Time the base on this machine; in place, see `steps.latency.timing`."""
    device = _device_for(config)
    models: list[nn.Module] = [base.unet, base.text_encoder, base.vae]
    for model in models:
        model.to(device)
    inputs = _Inputs(base, config.batch_size, device)
    clock = clock_for(device)
    context.progress.start("latency profile", _ATTEMPTS * (config.warmup + config.repeats))
    try:
        with quiet(*models):
            for attempt in range(_ATTEMPTS):
                table = _measure_once(inputs, config, clock, context, attempt)
                if abs(table.explained - 1.0) <= config.max_unexplained:
                    break
                logger.warning(
                    "the parts explain %.1f%% of the whole, measuring again", 100 * table.explained
                )
    finally:
        context.progress.close()
    return table


def count(base: BaseModel, config: LatencyProfileConfig) -> LatencyTable:
    """Multiply-accumulates of the base, from shapes alone."""
    inputs = _Inputs(_on_meta(base), config.batch_size, torch.device("meta"))
    parts = unet_parts(inputs.base.unet)
    total, by_part = count_macs(inputs.guided_step, parts)
    values = {part.id: [float(by_part[part.id])] for part in parts} | {"unet": [float(total)]}
    values["text_encoder"] = [float(count_macs(inputs.encode_text)[0])]
    values["decoder"] = [float(count_macs(inputs.decode)[0])]
    means = {part.id: float(by_part[part.id]) for part in parts}
    return _table(inputs, config, parts, _Timings(values, means, sum(means.values()) / total), "none")


class _Inputs:
    """Calls of the three models at the shapes they have in a guided step."""

    def __init__(self, base: BaseModel, batch: int, device: torch.device) -> None:
        self.base, self.batch = base, batch
        self.tokens = int(base.tokenizer.model_max_length)
        self.latent = torch.zeros(batch, *base.latent_shape, device=device)
        self.timestep = torch.full((batch,), 500, device=device)
        self.text = torch.zeros(batch, self.tokens, int(base.text_encoder.config.hidden_size), device=device)
        self.ids = torch.zeros(batch, self.tokens, dtype=torch.long, device=device)
        # Constant inputs would let normalisations divide by nothing; the values do not matter otherwise.
        generator = torch.Generator().manual_seed(0)
        for tensor in (self.latent, self.text):
            if tensor.device.type != "meta":
                tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def guided_step(self) -> Tensor:
        """Both branches of a guided step in one call of the UNet."""
        sample: Tensor = self.base.unet(self.latent, self.timestep, self.text, return_dict=False)[0]
        return sample

    def encode_text(self) -> Tensor:
        """Caption and empty caption."""
        hidden: Tensor = self.base.text_encoder(self.ids)[0]
        return hidden

    def decode(self) -> Tensor:
        """One picture."""
        picture: Tensor = self.base.vae.decode(self.latent[:1], return_dict=False)[0]
        return picture

    def models(self) -> dict[WholeModel, tuple[nn.Module, Callable[[], Tensor], Tensor]]:
        """Module whose parameters count, call and first input of every whole model."""
        return {
            "unet": (self.base.unet, self.guided_step, self.latent),
            "text_encoder": (self.base.text_encoder, self.encode_text, self.ids),
            "decoder": (self.base.vae.decoder, self.decode, self.latent[:1]),
        }


@dataclass(frozen=True)
class _Timings:
    """Raw repeats by name, the means of the quieter half, and how much of the whole the parts explain."""

    values: dict[str, list[float]]
    means: dict[str, float]
    explained: float


def _measure_once(
    inputs: _Inputs, config: LatencyProfileConfig, clock: Clock, context: StageContext, attempt: int
) -> LatencyTable:
    """One pass of warm-up and repeats; every repeat times all parts and all whole models in turn."""
    parts = unet_parts(inputs.base.unet)
    values: dict[str, list[float]] = {
        name: [] for name in [part.id for part in parts] + list(inputs.models())
    }
    wholes: list[float] = []
    for repeat in range(config.warmup + config.repeats):
        found, whole = time_parts(parts, inputs.guided_step, clock)
        found |= {name: time_call(call, clock) for name, (_, call, _) in inputs.models().items()}
        if repeat >= config.warmup:
            wholes.append(whole)
            for name, value in found.items():
                values[name].append(value)
        context.progress.update(attempt * (config.warmup + config.repeats) + repeat + 1)
    quieter = sorted(range(len(wholes)), key=wholes.__getitem__)[: (len(wholes) + 1) // 2]
    means = {part.id: fmean(values[part.id][i] for i in quieter) for part in parts}
    explained = sum(means.values()) / fmean(wholes[i] for i in quieter)
    device = torch.cuda.get_device_name() if config.backend == "torch-cuda" else processor_name()
    return _table(inputs, config, parts, _Timings(values, means, explained), device)


def _table(
    inputs: _Inputs, config: LatencyProfileConfig, parts: list[Part], timings: _Timings, device: str
) -> LatencyTable:
    unit: Literal["ms", "MAC"] = "MAC" if config.backend == "macs" else "ms"
    shapes = _input_shapes(parts, inputs)
    rows = {
        part.id: LatencyRow(
            kind=part.kind,
            latency=Measurement.of(timings.values[part.id], unit),
            mean=timings.means[part.id],
            parameters=part.parameters,
            input_shapes=shapes[part.id],
        )
        for part in parts
    }
    for name, (model, _, first) in inputs.models().items():
        rows[name] = LatencyRow(
            kind=name,
            latency=Measurement.of(timings.values[name], unit),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            input_shapes=(tuple(first.shape),),
        )
    return LatencyTable(
        backend=config.backend,
        device=device,
        threads=torch.get_num_threads() if config.backend == "torch-cpu" else 0,
        dtype=str(inputs.latent.dtype).removeprefix("torch."),
        batch=config.batch_size,
        model=config_hash(inputs.base.unet.config),
        latent_shape=inputs.base.latent_shape,
        tokens=inputs.tokens,
        unit=unit,
        timing="counted" if unit == "MAC" else "in-situ",
        rows=rows,
        sum_of_parts=sum(timings.means.values()),
        whole=rows["unet"].latency.median,
        explained=timings.explained,
    )


def _input_shapes(parts: list[Part], inputs: _Inputs) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Shapes of the tensors that every part is called with, from one forward pass."""
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
            shapes.setdefault(name, tuple(tuple(tensor.shape) for tensor in tensors))

        return hook

    handles = [part.modules[0].register_forward_pre_hook(note(part.id), with_kwargs=True) for part in parts]
    with torch.no_grad():
        inputs.guided_step()
    for handle in handles:
        handle.remove()
    return shapes


def _on_meta(base: BaseModel) -> BaseModel:
    """The same models without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base.unet.config)
        vae = AutoencoderKL.from_config(base.vae.config)
        text = CLIPTextModel(base.text_encoder.config)
    return BaseModel(base.path, unet, vae, text, base.tokenizer, base.scheduler_config, base.prediction_type)


def _device_for(config: LatencyProfileConfig) -> torch.device:
    if config.backend == "torch-cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "latency_profile.backend is 'torch-cuda' but torch finds no GPU; use 'torch-cpu' or 'macs'"
        )
    if config.backend not in ("torch-cpu", "torch-cuda"):
        raise LatencyTableError(f"backend {config.backend} is not measured here; import a table")
    return torch.device("cuda" if config.backend == "torch-cuda" else "cpu")
