"""`robust_training`: the v UNet learns to do without any of its units (P section 3.1, eq. 5).

The result is again a whole UNet2DConditionModel.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.references import WeightsRef
from artifacts_schema.stage_configs import RobustTrainingConfig
from artifacts_schema.training import TrainingRecord
from steps.diffusion.losses import SPLIT, VALIDATION, LatentData, Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel
from steps.models.base_folder import folder_identity
from steps.models.stored import load_model, save_model
from steps.stages.velocity_finetuning import load_warm_start
from steps.training.loop import train
from steps.training.selection import held_out_loss
from steps.unet.conversion import as_evolved
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet

STAGE = "robust_training"
SCHEMA = "diffusers.UNet2DConditionModel"


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> TrainingRecord:
    """The stage, see `train_robust`."""
    return train_robust(
        inputs.base,
        inputs.earlier("velocity"),
        inputs.data,
        config.robust_training,
        context,
        warm_start=inputs.folder("robust_warm_start"),
    )


def train_robust(
    base: BaseModel,
    velocity: WeightsRef,
    data: LatentData,
    config: RobustTrainingConfig,
    context: StageContext,
    *,
    warm_start: Path | None = None,
) -> TrainingRecord:
    """Train the v UNet with units skipped at random; from the weights in the folder `warm_start` if given.

    Raises BaseModelError for a warm start that belongs to another base.
    """
    source: Any = (
        load_model(context.store, velocity) if warm_start is None else load_warm_start(warm_start, base)
    )
    unet: EvolvedUNet = as_evolved(source).requires_grad_(True)
    training = config.training
    sampling = Sampling(
        data=data,
        schedule=NoiseSchedule.from_config(base.scheduler_config),
        caption_dropout=config.caption_dropout,
        device=context.device,
    )
    outcome = train(
        unet,
        SkippingLoss(sampling, config.drop_probability, config.ramp_fraction * training.iterations),
        training=training,
        samples=data.order(SPLIT),
        seed=context.seed,
        folder=context.checkpoints(),
        held_out=held_out_loss(
            "mean squared error of v on validation latents, units skipped",
            SkippingLoss(replace(sampling, split=VALIDATION), config.drop_probability),
            data.size(VALIDATION),
            seed=context.seed,
        ),
        progress=context.progress,
        description=STAGE,
        device=context.device,
        processes=context.processes,
    )
    parents = (velocity.identity(),)
    return TrainingRecord(
        stage=STAGE,
        parents=parents,
        config=config.meaning(),
        seed=context.seed,
        weights=save_model(context.store, unet.to_unet(), schema=SCHEMA, parents=parents),
        iterations=outcome.iterations,
        batch_size=training.batch_size * training.accumulation,
        curve=tuple(outcome.curve),
        selection=outcome.selection,
        warm_start=None if warm_start is None else folder_identity(warm_start),
        images_per_s=outcome.images_per_s,
    )
