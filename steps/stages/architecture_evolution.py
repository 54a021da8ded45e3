"""`architecture_evolution`: P Algorithm 1. Probe every unit, remove or copy, go on training, until fast
enough.

Rounds are finished one by one, each kept on disk with its weights; an interrupted stage goes on with the
probes and the checkpoint of the round it was in.
"""

import logging
from dataclasses import dataclass

from torch import nn

from artifacts_schema.architecture import EvolutionRecord, EvolutionRound
from artifacts_schema.base import Measurement, content_hash
from artifacts_schema.config import ArchitectureEvolutionConfig, SnapFusionConfig, TrainingConfig
from artifacts_schema.latency import LatencyTable
from artifacts_schema.references import WeightsRef
from steps.data.prepared import PreparedData
from steps.diffusion.losses import SPLIT, Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.evolution.actions import Budget, check_reachable, choose_actions
from steps.evolution.kept import load_round, save_round
from steps.evolution.probe import Probe, Scorer, score_units
from steps.files.errors import BudgetError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel
from steps.models.stored import load_model, save_model
from steps.training.loop import TrainingOutcome, train
from steps.training.randomness import spawn
from steps.unet.conversion import as_evolved, build
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet

logger = logging.getLogger(__name__)
STAGE = "architecture_evolution"
SCHEMA = "snapfusion.EvolvedUNet"


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> EvolutionRecord:
    """The stage, see `evolve`."""
    return evolve(
        inputs.base,
        inputs.earlier("robust"),
        inputs.earlier("latency_table"),
        inputs.data,
        inputs.signal_clip,
        config.architecture_evolution,
        context,
    )


def evolve(
    base: BaseModel,
    robust: WeightsRef,
    table: LatencyTable,
    data: PreparedData,
    scorer: Scorer,
    config: ArchitectureEvolutionConfig,
    context: StageContext,
) -> EvolutionRecord:
    """Evolve the robust UNet until it meets `latency_budget` of the base's latency in `table`.

    `scorer` must be another model than the one that measures results. Raises BudgetError, before any work,
    when the allowed removals cannot meet the budget, and LatencyTableError for a table of another base.
    """
    check_reachable(table, base.unet.config, config)
    evolution = _Evolution(
        base, data, scorer, config, context, Budget.of(table, base.unet.config, config.latency_budget)
    )
    unet: EvolvedUNet = as_evolved(load_model(context.store, robust)).to(context.device)
    base.vae.to(context.device)
    rounds: list[EvolutionRound] = []
    for index in range(config.rounds):
        unet, finished = evolution.round(unet, index, sum(item.trained_iterations for item in rounds))
        rounds.append(finished)
        if not finished.actions:
            break
    if not evolution.budget.is_met(unet.spec):
        raise BudgetError(
            f"expected at most {evolution.budget.limit:.4g} {table.unit}, reached "
            f"{evolution.budget.predict(unet.spec):.4g} after {len(rounds)} rounds; "
            "raise rounds or actions_per_round"
        )
    parents = (robust.identity(), table.identity())
    spec = unet.spec.model_copy(
        update={"name": f"{STAGE}-{context.seed}", "parents": parents, "seed": context.seed}
    )
    return EvolutionRecord(
        stage=STAGE,
        parents=parents,
        config=config.meaning(),
        seed=context.seed,
        architecture=spec,
        weights=save_model(context.store, build(spec, unet), schema=SCHEMA, parents=parents),
        rounds=tuple(rounds),
        latency_table=table.identity(),
        latency_unit=table.unit,
        latency_budget=config.latency_budget,
        base_latency=evolution.budget.limit / config.latency_budget,
        predicted_latency=evolution.budget.predict(spec),
        base_parameters=_size(base.unet),
        parameters=_size(unet),
        images_per_s=evolution.images_per_s,
    )


@dataclass
class _Evolution:
    """What stays the same over the rounds."""

    base: BaseModel
    data: PreparedData
    scorer: Scorer
    config: ArchitectureEvolutionConfig
    context: StageContext
    budget: Budget
    images_per_s: Measurement | None = None

    def round(self, unet: EvolvedUNet, index: int, trained: int) -> tuple[EvolvedUNet, EvolutionRound]:
        """Probe, act and train; or take the round from disk when it is finished there."""
        folder = self.context.work / f"round_{index}"
        found = load_round(self.context, folder, unet.spec)
        if found is not None:
            return found[0].to(self.context.device), found[1]
        before = unet.spec
        baseline, scores = score_units(unet, self.probe(index), self.budget, self.context, folder)
        rounds_left = self.config.rounds - index - 1
        actions = self.config.actions_per_round
        spec, taken = choose_actions(
            before, scores, self.budget, actions=actions, later=rounds_left * actions
        )
        unet = build(spec, unet)
        # A round without actions is the last one and uses up the training.
        last = rounds_left == 0 or not taken
        remaining = self.config.training.iterations - trained
        iterations = remaining if last else self.config.training.iterations // self.config.rounds
        outcome = self.train(unet, iterations, index, last=last)
        finished = EvolutionRound(
            index=index,
            layout_before=before.stages,
            baseline_score=baseline,
            scores=tuple(scores),
            actions=tuple(taken),
            predicted_before=self.budget.predict(before),
            predicted_after=self.budget.predict(spec),
            trained_iterations=outcome.iterations,
            curve=tuple(outcome.curve),
        )
        for action in taken:
            logger.info("round=%d %s %s value=%.4g", index, action.kind, action.target, action.value)
        save_round(self.context, folder, unet, finished)
        return unet, finished

    def probe(self, index: int) -> Probe:
        """The probe of one round."""
        return Probe.of_round(
            self.base, self.data, self.scorer, self.config, seed=self.context.seed, index=index
        )

    def train(self, unet: EvolvedUNet, iterations: int, index: int, *, last: bool) -> TrainingOutcome:
        """Train in place. After the last round nothing is removed any more, so nothing is skipped either.

        The checkpoints belong to the architecture: where probes were lost, other scores can lead to another one.
        """
        sampling = Sampling(
            data=self.data,
            schedule=NoiseSchedule.from_config(self.base.scheduler_config),
            caption_dropout=self.config.caption_dropout,
            device=self.context.device,
        )
        unet.requires_grad_(True)
        outcome = train(
            unet,
            SkippingLoss(sampling, probability=0.0 if last else self.config.drop_probability),
            training=_share(self.config.training, iterations),
            samples=self.data.size(SPLIT),
            seed=spawn(self.context.seed, "round", index),
            folder=self.context.checkpoints(
                f"round_{index}/checkpoints/{content_hash(unet.spec.layout())[:16]}"
            ),
            progress=self.context.progress,
            description=f"{STAGE} round {index + 1}",
            device=self.context.device,
        )
        self.images_per_s = outcome.images_per_s or self.images_per_s
        return outcome


def _share(training: TrainingConfig, iterations: int) -> TrainingConfig:
    """The training of one round: its own warm-up, no longer than a fifth of it."""
    warmup = min(training.warmup_iterations, iterations // 5)
    return training.model_copy(update={"iterations": iterations, "warmup_iterations": warmup})


def _size(unet: nn.Module) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())
