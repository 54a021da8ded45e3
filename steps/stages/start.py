"""`start`: what is wrong with base or data fails here, and the data are prepared once.

Loads the base, checks it against its tokenizer, puts base, warm starts and evaluators into the store, and caches
latents and text embeddings. What every run is checked for, cached or not, is in `steps.inputs.checks`.
"""

import logging
from pathlib import Path

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.data import RawData
from artifacts_schema.plan import RunPlan
from steps.data.prepared import prepare_data
from steps.files.errors import ConfigError
from steps.inputs.context import StageContext
from steps.inputs.folders import MICRO, base_folder, inception_weights, other_folders
from steps.latency.unit_costs import measure_unit_costs
from steps.models.base import BaseModel, load_base
from steps.models.base_folder import folder_identity
from steps.models.clip import check_clip
from steps.pretraining.micro import write_micro_base
from steps.store import put_folder
from steps.unet.blocks import list_blocks

logger = logging.getLogger(__name__)


def run(raw: RawData, config: SnapFusionConfig, context: StageContext, project_root: Path) -> RunPlan:
    """Check base, evaluators and data; returns the plan every later stage reads.

    `raw` is what the data are prepared from (`steps.inputs.folders.raw_data`), for the record.
    """
    others = other_folders(config, project_root)
    for path in (others["signal_clip"], others["measure_clip"]):
        if path is not None:
            check_clip(path)
    inception = inception_weights(config, project_root)
    folder = _base_folder(config, project_root, context.work)
    base = load_base(folder)
    list_blocks(base.unet.config)  # refuses what the evolved UNet cannot be made of
    _check_image_size(config, base)
    stored = {name: put_folder(context.store, path) if path else None for name, path in others.items()}
    data = prepare_data(
        base, config.data, context.store, progress=context.progress, project_root=project_root
    )
    return RunPlan(
        stage="start",
        config={name: getattr(config, name).meaning() for name in ("base", "data")},
        seed=context.seed,
        base=put_folder(context.store, folder),
        base_identity=folder_identity(folder),
        prediction_type=base.prediction_type,
        data=data,
        raw_data=raw,
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
