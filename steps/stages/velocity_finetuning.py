"""`velocity_finetuning`: from an eps-prediction UNet to a v-prediction UNet (SnapFusion section 4.1).

Step distillation of an eps student fails at high noise, where an eps error is multiplied by 1 / alpha. A base
that already predicts v is passed on as it is.
"""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.stage_configs import VelocityFinetuningConfig
from artifacts_schema.training import TrainingRecord
from steps.diffusion.losses import SPLIT, VALIDATION, LatentData, Sampling, VelocityLoss
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import BaseModelError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel
from steps.models.base_folder import folder_identity
from steps.models.stored import save_model
from steps.models.whole import load_whole
from steps.training.loop import train
from steps.training.placement import frozen
from steps.training.selection import held_out_loss

logger = logging.getLogger(__name__)
STAGE = "velocity_finetuning"
SCHEMA = "diffusers.UNet2DConditionModel"
WARM_START_FILE = "warm_start.json"
# What may differ between a UNet and a warm start for it without changing the architecture.
_NOT_ARCHITECTURE = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> TrainingRecord:
    """The stage, see `finetune`."""
    warm_start = inputs.folder("velocity_warm_start")
    return finetune(inputs.base, inputs.data, config.velocity_finetuning, context, warm_start=warm_start)


def finetune(
    base: BaseModel,
    data: LatentData,
    config: VelocityFinetuningConfig,
    context: StageContext,
    *,
    warm_start: Path | None = None,
) -> TrainingRecord:
    """Train the base's UNet to predict v; from the weights in the folder `warm_start` if given.

    Raises BaseModelError for a warm start that belongs to another base.
    """
    parents = (folder_identity(base.path),)
    if base.prediction_type == "v_prediction":
        return _skipped(base, config, context, parents)
    unet = copy.deepcopy(base.unet) if warm_start is None else load_warm_start(warm_start, base)
    started_from = None if warm_start is None else folder_identity(warm_start)
    unet.requires_grad_(True)
    sampling = Sampling(
        data=data,
        schedule=NoiseSchedule.from_config(base.scheduler_config),
        caption_dropout=config.caption_dropout,
        device=context.device,
    )
    loss = VelocityLoss(
        base=frozen(base.unet, context.device, config.training.precision),
        sampling=sampling,
        base_weight=config.base_velocity_weight,
        min_alpha=config.base_velocity_min_alpha,
    )
    outcome = train(
        unet,
        loss,
        training=config.training,
        samples=data.order(SPLIT),
        seed=context.seed,
        folder=context.checkpoints(),
        held_out=held_out_loss(
            "mean squared error of v on validation latents",
            VelocityLoss(base.unet, replace(sampling, split=VALIDATION), 0.0, 1.0),
            data.size(VALIDATION),
            seed=context.seed,
        ),
        progress=context.progress,
        description=STAGE,
        device=context.device,
        processes=context.processes,
    )
    return TrainingRecord(
        stage=STAGE,
        parents=parents,
        config=config.meaning(),
        seed=context.seed,
        weights=save_model(context.store, outcome.model, schema=SCHEMA, parents=parents),
        iterations=outcome.iterations,
        batch_size=config.training.batch_size * config.training.accumulation,
        curve=tuple(outcome.curve),
        selection=outcome.selection,
        warm_start=started_from,
        images_per_s=outcome.images_per_s,
    )


def _skipped(
    base: BaseModel, config: VelocityFinetuningConfig, context: StageContext, parents: tuple[str, ...]
) -> TrainingRecord:
    """The record of a base that predicts v already: its own weights."""
    logger.info("stage=%s skipped: the base already predicts v", STAGE)
    return TrainingRecord(
        stage=STAGE,
        parents=parents,
        config=config.meaning(),
        seed=context.seed,
        weights=save_model(context.store, base.unet, schema=SCHEMA, parents=parents),
        iterations=0,
        batch_size=config.training.batch_size,
        skipped=True,
    )


def load_warm_start(folder: Path, base: BaseModel) -> Any:
    """The v-prediction UNet in `folder`, float32.

    Raises BaseModelError when its architecture is not the base's, or when its `warm_start.json` names the
    identity of another base (`base_identity`), or when weights are missing.
    """
    advice = "set base.warm_start = false to train from the base"
    note = folder / WARM_START_FILE
    if note.is_file():
        expected = json.loads(note.read_text(encoding="utf-8")).get("base_identity")
        if expected != (found := folder_identity(base.path)):
            raise BaseModelError(
                f"warm start {folder} belongs to base {expected}, found base {found}; {advice}"
            )
    unet = load_whole(UNet2DConditionModel, folder)
    if _architecture(unet) != _architecture(base.unet):
        raise BaseModelError(f"warm start {folder} is not a UNet of the base's architecture; {advice}")
    return unet


def _architecture(unet: Any) -> dict[str, Any]:
    values = {key: value for key, value in unet.config.items() if key not in _NOT_ARCHITECTURE}
    # JSON has no tuples: a configuration that was saved and loaded has lists in their place.
    loaded: dict[str, Any] = json.loads(json.dumps(values))
    return loaded
