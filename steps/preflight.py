"""`start`: everything that can fail cheaply fails here, and the data are prepared once.

Loads the base, checks it against its tokenizer, puts base, warm starts and evaluators into the store, measures the
disk, and caches latents and text embeddings.
"""

import logging
import os
import time
from pathlib import Path

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.plan import RunPlan
from steps.base_folder import folder_identity
from steps.context import StageContext
from steps.data.prepared import prepare_data
from steps.disk import check_disk
from steps.errors import ConfigError
from steps.evaluation.clip_score import check_clip
from steps.input_folders import MICRO, base_folder, inception_weights, other_folders
from steps.models import BaseModel, load_base
from steps.pretraining.micro import write_micro_base
from steps.store import put_folder
from steps.unet.blocks import list_blocks
from steps.unit_costs import measure_unit_costs

logger = logging.getLogger(__name__)
_PROBE_BYTES = 16 << 20
# Optimizer moments, weights and moving average are each as large as the float32 weights.
_CHECKPOINT_COPIES = 4
# Checkpoints (two kept) of every training stage, their results, pictures and packages.
_STORE_COPIES = 60


def run(config: SnapFusionConfig, context: StageContext, project_root: Path) -> RunPlan:
    """Check base, evaluators, disk and data; returns the plan every later stage reads."""
    others = other_folders(config, project_root)
    for path in (others["signal_clip"], others["measure_clip"]):
        if path is not None:
            check_clip(path)
    inception = inception_weights(config, project_root)
    folder = _base_folder(config, project_root, context.work)
    base = load_base(folder)
    list_blocks(base.unet.config)  # refuses what the evolved UNet cannot be made of
    _check_image_size(config, base)
    check_export(config, base)
    _check_room(config, base, context.work)
    stored = {name: put_folder(context.store, path) if path else None for name, path in others.items()}
    data = prepare_data(
        base, config.data, context.store, progress=context.progress, project_root=project_root
    )
    return RunPlan(
        stage="start",
        config={name: getattr(config, name).model_dump(mode="json") for name in ("base", "data")},
        seed=context.seed,
        base=put_folder(context.store, folder),
        base_identity=folder_identity(folder),
        prediction_type=base.prediction_type,
        data=data,
        inception=context.store.put_file(inception) if inception else None,
        estimates=measure_unit_costs(base, context.device),
        **stored,
    )


def _base_folder(config: SnapFusionConfig, project_root: Path, work: Path) -> Path:
    """The base's folder; the micro base is built in the work folder."""
    if config.base.path == MICRO:
        return write_micro_base(work / "micro_base", seed=config.run.seed)
    return base_folder(config, project_root)


def _check_image_size(config: SnapFusionConfig, base: BaseModel) -> None:
    if config.data.image_size not in (None, base.image_size):
        raise ConfigError(
            f"data.image_size is {config.data.image_size}, but the base draws {base.image_size} x {base.image_size}; "
            "leave it out or use a base of that size"
        )


def check_export(config: SnapFusionConfig, base: BaseModel) -> None:
    """Refuse what the export of this base would only refuse at the end of the run. Raises ConfigError."""
    export = config.coreml_export
    last = int(base.scheduler_config.get("num_train_timesteps", 1000)) - 1
    beyond = [t for t in export.program_check.timesteps if t > last]
    if beyond:
        raise ConfigError(
            f"coreml_export.program_check.timesteps names {beyond}, the base's schedule ends at {last}; "
            "leave them out"
        )
    if "safety_checker" in export.components and not (base.path / "safety_checker/config.json").is_file():
        raise ConfigError(
            f"coreml_export.components names safety_checker, the base {base.path} has none; leave it out, or put one "
            "into the folder 'safety_checker'"
        )


def _check_room(config: SnapFusionConfig, base: BaseModel, root: Path) -> None:
    """Refuse a store without room, and a SIGTERM grace period in which no checkpoint could be written."""
    weights = 4 * sum(parameter.numel() for parameter in base.unet.parameters())
    check_disk(
        root, _STORE_COPIES * weights + (1 << 30), "this run's store (store.root, with S3 store.local)"
    )
    seconds = _CHECKPOINT_COPIES * weights / _write_speed(root)
    if seconds > config.compute.sigterm_grace_s:
        raise ConfigError(
            f"a checkpoint takes about {seconds:.0f} s on {root}, more than compute.sigterm_grace_s = "
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
