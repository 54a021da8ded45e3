"""`architecture_evolution` where the architecture is given: nothing is searched, it is built and trained.

The UNet keeps the weights of the blocks that it has; copies start as their originals. One training follows, of which the
best state is handed on.
"""

from dataclasses import replace

from artifacts_schema.architecture import ArchitectureSpec, EvolutionRecord
from artifacts_schema.references import WeightsRef
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig, LatencyProfileConfig
from steps.diffusion.losses import SPLIT, VALIDATION, LatentData, Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import ArchitectureError
from steps.inputs.context import StageContext
from steps.latency.table import predict
from steps.models.base import BaseModel
from steps.models.stored import load_model, save_model
from steps.stages import latency_profile
from steps.training.loop import train
from steps.training.selection import held_out_loss
from steps.unet.architecture import named_spec, validate
from steps.unet.conversion import as_evolved, build
from steps.unet.dropping import SkippingLoss

STAGE = "architecture_evolution"
SCHEMA = "snapfusion.EvolvedUNet"


def given_spec(config: ArchitectureEvolutionConfig, base: BaseModel) -> ArchitectureSpec:
    """The architecture that the configuration gives. Raises ArchitectureError where it is not one of this base."""
    given = config.architecture
    if given is None:
        raise ArchitectureError("expected an architecture that is given, found a search; set architecture")
    if isinstance(given, str):
        try:
            return named_spec(given, base.unet.config)
        except ArchitectureError as error:
            raise ArchitectureError(
                f"architecture_evolution.architecture = '{given}' needs a base of Stable Diffusion 1.5's topology: {error}"
            ) from error
    spec = given.spec()
    validate(spec, base.unet.config)
    return spec


def train_given(
    base: BaseModel,
    start: WeightsRef,
    data: LatentData,
    config: ArchitectureEvolutionConfig,
    context: StageContext,
) -> EvolutionRecord:
    """Build the given architecture from the weights `start` and train it for `training.iterations`.

    The latency in the record is counted in MACs: what a machine measures decides nothing here.
    """
    spec = given_spec(config, base)
    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    unet = build(spec, as_evolved(load_model(context.store, start))).requires_grad_(True)
    sampling = Sampling(
        data=data,
        schedule=NoiseSchedule.from_config(base.scheduler_config),
        caption_dropout=config.caption_dropout,
        device=context.device,
    )
    outcome = train(
        unet,
        SkippingLoss(sampling, probability=0.0),
        training=config.training,
        samples=data.order(SPLIT),
        seed=context.seed,
        folder=context.checkpoints(),
        held_out=held_out_loss(
            "mean squared error of v on validation latents",
            SkippingLoss(replace(sampling, split=VALIDATION), probability=0.0),
            data.size(VALIDATION),
            seed=context.seed,
        ),
        progress=context.progress,
        description=f"{STAGE}, {spec.name}",
        device=context.device,
    )
    parents = (start.identity(), table.identity())
    return EvolutionRecord(
        stage=STAGE,
        parents=parents,
        config=config.meaning_of_stage(),
        seed=context.seed,
        architecture=spec.model_copy(update={"parents": parents, "seed": context.seed}),
        weights=save_model(context.store, unet, schema=SCHEMA, parents=parents),
        rounds=(),
        latency_table=table.identity(),
        latency_unit=table.unit,
        latency_budget=None,
        base_latency=table.whole,
        predicted_latency=predict(table, spec),
        base_parameters=sum(parameter.numel() for parameter in base.unet.parameters()),
        parameters=sum(parameter.numel() for parameter in unet.parameters()),
        iterations=outcome.iterations,
        curve=tuple(outcome.curve),
        selection=outcome.selection,
        images_per_s=outcome.images_per_s,
    )
