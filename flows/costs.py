"""What every preset would take on this machine, roughly: as `start` estimates it, from what the included model takes here."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.run_configs import ComputeConfig
from flows.environment import PROJECT_ROOT, max_workers, threads_per_task, usable_cores
from flows.health import memory_bytes
from flows.presets import presets, read_source
from steps.files.errors import ConfigError
from steps.files.processor import processor_name
from steps.inputs.checks import SPARE_BYTES, STORE_COPIES
from steps.inputs.folders import MICRO
from steps.latency.estimates import stage_estimates

INCLUDED = "assets/base"
# Of the default run on two cores in 2026-11: a task loads models and their evaluators for 5 to 14 s; with a budget of 0.5 the
# evolved UNet took 0.34 to 0.41 of the base's time in batches of 64, where attention, which is what goes, weighs more.
_TASK_S, _EVOLVED = 10.0, 0.7

# Stable Diffusion 1.5 in float32, of one latent, counted on the meta device with `steps.latency.macs` and diffusers' classes.
SD15_MACS = {"unet": 401_636_720_640, "decoder": 1_257_259_466_752}
SD15 = {
    "unet_activation_bytes": 4_798_481_920.0,
    "decoder_activation_bytes": 6_039_936_576.0,
    "unet_parameters": 859_520_964.0,
    "decoder_parameters": 49_490_179.0,
    "units": 32.0,
}


@dataclass(frozen=True)
class PresetCost:
    """A preset's sum over its stages: seconds of work, most memory of a training, room in the store.

    `basis` says where it is from: `measured` (the preset's own base), or `scaled` by multiply-accumulates.
    """

    preset: str
    seconds: float
    memory_bytes: float
    disk_bytes: float
    basis: str
    missing: str = ""


@dataclass(frozen=True)
class Measured:
    """On what was measured, the memory of that in bytes, and a line for every preset."""

    on: str
    memory_bytes: int
    presets: tuple[PresetCost, ...]


def preset_costs() -> Measured:
    """Measure the bases that are here and estimate every preset. Takes some ten seconds, with torch."""
    import diffusers
    import torch

    from steps.inputs.context import configure_torch, quiet_libraries, select_device

    quiet_libraries()
    diffusers.utils.logging.set_verbosity_error()  # a remark on every model that goes to a device
    threads = configure_torch(ComputeConfig(threads=threads_per_task(usable_cores()), deterministic=False))
    device = select_device(ComputeConfig())
    known = dict(_measured(str(device)))
    configs = {name: parse_config(read_source(name)) for name in presets()}
    memory = torch.cuda.mem_get_info()[1] if device.type == "cuda" else memory_bytes()
    lines = tuple(_cost(name, config, known) for name, config in configs.items())
    busy = f"load {os.getloadavg()[0]:.1f} on {usable_cores()} cores"
    return Measured(f"{device}, threads: {threads}, {busy}", memory, lines)


def machine_here() -> tuple[str, float, str]:
    """Name and memory (bytes) of what stages compute on here, and whose memory that is, for a sentence."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), float(torch.cuda.mem_get_info()[1]), "the GPU"
    tasks = max_workers(usable_cores())
    return (
        f"{processor_name()}, {usable_cores()} cores, {tasks} tasks at once",
        memory_bytes(),
        "this machine",
    )


@dataclass(frozen=True)
class CostsHere:
    """What `measure_unit_costs` finds here: alone, and while as many tasks as the flow starts at once do the same."""

    alone: dict[str, float]
    together: dict[str, float]
    basis: str


def costs_here(config: SnapFusionConfig, counts: Mapping[str, float]) -> CostsHere:
    """Of the configuration's base; of the included one, scaled by `counts` (`steps.latency.counted`), where it is not here."""
    with tempfile.TemporaryDirectory() as scratch:
        own, included = PROJECT_ROOT / config.base.path, PROJECT_ROOT / INCLUDED
        if config.base.path == MICRO:
            from steps.pretraining.micro import write_micro_base

            own = write_micro_base(Path(scratch) / "base")
        folder = own if own.is_dir() else included
        if not folder.is_dir():
            raise ConfigError(
                f"neither {own} nor {included} is here to be measured; name --hardware of the table"
            )
        tasks = max_workers(usable_cores())
        alone = _costs_of(folder)
        together = alone
        if tasks > 1:
            with ProcessPoolExecutor(tasks, mp_context=get_context("spawn")) as pool:
                several = list(pool.map(_costs_of, [folder] * tasks))
            together = {name: fmean(costs[name] for costs in several) for name in alone}
    basis = f"measured here, alone and with {tasks} tasks at once"
    if folder == own:
        return CostsHere(alone, together, basis)
    return CostsHere(
        _scaled(alone, folder, counts),
        _scaled(together, folder, counts),
        f"{basis}, of the included model, by multiply-accumulates",
    )


def _costs_of(folder: Path) -> dict[str, float]:
    """Unit costs of a base, with the threads of a task."""
    from steps.inputs.context import configure_torch, quiet_libraries, select_device
    from steps.latency.unit_costs import measure_unit_costs
    from steps.models.base import load_base

    quiet_libraries()
    configure_torch(ComputeConfig(threads=threads_per_task(usable_cores()), deterministic=False))
    device = select_device(ComputeConfig())
    return measure_unit_costs(load_base(folder), device) | {"task_s": _TASK_S, "evolved_factor": _EVOLVED}


def _scaled(costs: Mapping[str, float], folder: Path, counts: Mapping[str, float]) -> dict[str, float]:
    from steps.latency.counted import counted, shapes_of

    known = counted(shapes_of(folder))
    macs = {part: counts[f"{part}_macs"] / known[f"{part}_macs"] for part in ("unet", "decoder", "encoder")}
    factor = {
        "unet_forward_s": macs["unet"],
        "unet_training_s": macs["unet"],
        "unet_update_s": counts["unet_parameters"] / known["unet_parameters"],
        "decoder_forward_s": macs["decoder"],
        "small_decoder_training_s": macs["decoder"],
        "encoder_forward_s": macs["encoder"],
        "task_s": 1.0,
        "evolved_factor": 1.0,
    }
    kept = {name: counts[name] for name in ("unet_parameters", "decoder_parameters", "units")}
    # Memory is counted from shapes, in `steps.latency.fit`.
    none = {"unet_activation_bytes": 0.0, "decoder_activation_bytes": 0.0}
    return kept | none | {name: costs[name] * value for name, value in factor.items()}


def _measured(device: str) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Costs of a latent by base; of Stable Diffusion scaled from the included model's, if that is there."""
    import torch

    from steps.latency.macs import count_macs
    from steps.latency.unit_costs import measure_unit_costs
    from steps.models.base import load_base
    from steps.pretraining.micro import write_micro_base

    with tempfile.TemporaryDirectory() as scratch:
        yield (
            MICRO,
            measure_unit_costs(load_base(write_micro_base(Path(scratch) / "base")), torch.device(device)),
        )
    if not (PROJECT_ROOT / INCLUDED).is_dir():
        return
    base = load_base(PROJECT_ROOT / INCLUDED)
    costs = measure_unit_costs(base, torch.device(device))
    yield INCLUDED, costs
    z = torch.zeros(1, *base.latent_shape, device=device)
    text = torch.zeros(
        1, base.tokenizer.model_max_length, int(base.unet.config.cross_attention_dim), device=device
    )
    unet, _ = count_macs(lambda: base.unet(z, torch.zeros(1, device=device), text))
    decoder, _ = count_macs(lambda: base.vae.decode(z))
    yield (
        "",
        SD15
        | {
            "unet_forward_s": costs["unet_forward_s"] * SD15_MACS["unet"] / unet,
            "decoder_forward_s": costs["decoder_forward_s"] * SD15_MACS["decoder"] / decoder,
        },
    )


def _cost(name: str, config: SnapFusionConfig, known: Mapping[str, Mapping[str, float]]) -> PresetCost:
    costs = known.get(config.base.path, known.get("", {}))
    missing = (
        "" if config.base.path == MICRO or (PROJECT_ROOT / config.base.path).is_dir() else config.base.path
    )
    if not costs:
        return PresetCost(name, 0.0, 0.0, 0.0, "not known", missing)
    stages = stage_estimates(config, costs)
    return PresetCost(
        preset=name,
        seconds=sum(stage.seconds for stage in stages),
        memory_bytes=max(stage.memory_bytes or 0.0 for stage in stages),
        disk_bytes=STORE_COPIES * 4 * costs["unet_parameters"] + SPARE_BYTES,
        basis="measured" if config.base.path in known else "scaled",
        missing=missing,
    )
