"""What a run is refused for before any work, whether `start` is cached or not.

These checks depend on this machine, or on settings that change nothing `start` makes, so that none of them may hide
behind its cache. Imports no torch: a run whose stages are all cached starts quickly.
"""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from artifacts_schema.config import SnapFusionConfig
from steps.files.disk import check_disk, used_bytes
from steps.files.errors import ArchitectureError, BaseModelError, ConfigError
from steps.inputs.folders import MICRO, base_folder
from steps.unet.architecture import named_spec, validate

_PROBE_BYTES = 16 << 20
SPARE_BYTES = 1 << 30
_MOST_HEADER = 100_000_000  # safetensors' own limit
# Optimizer moments, weights and moving average are each as large as the float32 weights.
_CHECKPOINT_COPIES = 5
_CHECKPOINTS = 3  # of the training at hand: two are kept while the next is written
# Checkpoints of every training stage, their results, pictures and packages.
STORE_COPIES = 60


@dataclass(frozen=True)
class BaseFacts:
    """What the checks ask of a base: size of its UNet, length of its noise schedule, its optional part."""

    unet_parameters: int
    train_timesteps: int
    has_safety_checker: bool


# `start` makes this base, so that there is nothing to look at before; its size is rounded up.
MICRO_FACTS = BaseFacts(unet_parameters=250_000, train_timesteps=1000, has_safety_checker=False)


def check_run(config: SnapFusionConfig, project_root: Path, local: Path) -> None:
    """Raises ConfigError, BaseModelError or DiskFullError. `local` is the folder where the store keeps its files here."""
    facts = MICRO_FACTS if config.base.path == MICRO else facts_of(base_folder(config, project_root))
    _check_export(config, facts)
    _check_architecture(config, project_root)
    _check_room(config, 4 * facts.unet_parameters, local)


def _check_architecture(config: SnapFusionConfig, project_root: Path) -> None:
    """Refuse an architecture that is given and not one of this base, before hours of training. Raises ConfigError."""
    given = config.architecture_evolution.architecture
    if given is None or "architecture_evolution" in config.run.skip or config.base.path == MICRO:
        return  # `start` makes the micro base; the stage checks what it is given, too
    path = base_folder(config, project_root) / "unet/config.json"
    try:
        unet = json.loads(path.read_text(encoding="utf-8"))
        validate(named_spec(given, unet) if isinstance(given, str) else given.spec(), unet)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"the base's file {path} cannot be read: {error}") from error
    except ArchitectureError as error:
        raise ConfigError(
            f"architecture_evolution.architecture is none of the base {config.base.path}: {error}"
        ) from error


def facts_of(folder: Path) -> BaseFacts:
    """Read from the base's configuration and the headers of its weights. Raises BaseModelError with the file at fault."""
    schedule = folder / "scheduler/scheduler_config.json"
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    # A large UNet may lie in several files; others beside them are variants of the same weights.
    files = (
        [weights] if weights.is_file() else sorted(weights.parent.glob(f"{weights.stem}-*-of-*.safetensors"))
    )
    path = schedule
    try:
        timesteps = int(json.loads(schedule.read_text(encoding="utf-8")).get("num_train_timesteps", 1000))
        parameters = 0
        for path in files:
            parameters += _parameters(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BaseModelError(f"the base's file {path} cannot be read: {error}") from error
    return BaseFacts(parameters, timesteps, (folder / "safety_checker/config.json").is_file())


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header: eight bytes of length, then JSON. Raises ValueError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > (most := min(path.stat().st_size, _MOST_HEADER)):
            raise ValueError(
                f"its header claims {length} bytes, expected at most {most}; copy the file again"
            )
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _check_export(config: SnapFusionConfig, base: BaseFacts) -> None:
    """Refuse what the export of this base would only refuse at the end of the run."""
    export = config.coreml_export
    last = base.train_timesteps - 1
    beyond = [t for t in export.program_check.timesteps if t > last]
    if beyond:
        raise ConfigError(
            f"coreml_export.program_check.timesteps names {beyond}, the base's schedule ends at {last}; "
            "leave them out"
        )
    if "safety_checker" in export.components and not base.has_safety_checker:
        raise ConfigError(
            f"coreml_export.components names safety_checker, the base {config.base.path} has none; leave it out, or "
            "put one into the folder 'safety_checker'"
        )


def _check_room(config: SnapFusionConfig, weights: int, local: Path) -> None:
    """Refuse a disk without room, and a SIGTERM grace period in which no checkpoint could be written.

    `weights` are the UNet's float32 bytes. What the store holds here already is taken for this run's.
    """
    local.mkdir(parents=True, exist_ok=True)
    checkpoint = _CHECKPOINT_COPIES * weights
    needed = max(STORE_COPIES * weights - used_bytes(local), _CHECKPOINTS * checkpoint) + SPARE_BYTES
    check_disk(local, needed, "this run's store (store.root, with S3 store.local)")
    seconds = checkpoint / _write_speed(local)
    if seconds > config.compute.sigterm_grace_s:
        raise ConfigError(
            f"a checkpoint takes about {seconds:.0f} s on {local}, more than compute.sigterm_grace_s = "
            f"{config.compute.sigterm_grace_s:g}; raise it (and your scheduler's grace period) or use a faster disk"
        )


def _write_speed(root: Path) -> float:
    """Bytes per second that reach the disk below `root`."""
    path = root / f".write-speed-{os.getpid()}"
    started = time.monotonic()
    try:
        with path.open("wb") as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return _PROBE_BYTES / max(time.monotonic() - started, 1e-6)
