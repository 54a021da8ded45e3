"""`architecture_evolution`: P Algorithm 1. Probe every change, remove or copy, go on training, until fast
enough.

Rounds are finished one by one, each kept on disk with its weights; an interrupted stage goes on with the
probes and the checkpoint of the round it was in.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from artifacts_schema.architecture import EvolutionRecord, EvolutionRound
from artifacts_schema.base import Measurement, content_hash
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.latency import LatencyTable
from artifacts_schema.references import WeightsRef
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig, LatencyProfileConfig
from steps.data.prepared import PreparedData
from steps.diffusion.losses import SPLIT, Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.evolution.actions import Budget, actions_of, apply, check_reachable
from steps.evolution.evidence import Estimate
from steps.evolution.kept import load_round, save_round
from steps.evolution.probe import Probe, Scorer
from steps.evolution.rule import choose, undecided
from steps.evolution.scoring import earlier_evidence, score_changes
from steps.files.errors import BudgetError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel
from steps.models.stored import load_model, save_model
from steps.stages import latency_profile
from steps.stages.given_architecture import train_given
from steps.training.loop import train
from steps.training.outcome import Part, TrainingOutcome
from steps.unet.conversion import as_evolved, build
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet

logger = logging.getLogger(__name__)
STAGE = "architecture_evolution"
SCHEMA = "snapfusion.EvolvedUNet"


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> EvolutionRecord:
    """The stage, see `evolve`; where the architecture is given, see `train_given`."""
    if config.architecture_evolution.architecture is not None:
        robust: WeightsRef = inputs.earlier("robust")
        return train_given(inputs.base, robust, inputs.data, config.architecture_evolution, context)
    by_table = config.architecture_evolution.decide_by == "table"
    return evolve(
        inputs.base,
        inputs.earlier("robust"),
        inputs.earlier("latency_table") if by_table else None,
        inputs.data,
        inputs.signal_clip,
        config=config.architecture_evolution,
        context=context,
    )


def evolve(
    base: BaseModel,
    robust: WeightsRef,
    measured: LatencyTable | None,
    data: PreparedData,
    scorer: Scorer,
    *,
    config: ArchitectureEvolutionConfig,
    context: StageContext,
) -> EvolutionRecord:
    """Evolve the robust UNet until it meets `latency_budget` of the base's latency in the `measured` table, or of its MACs.

    `scorer` must be another model than the one that measures results. Raises BudgetError, before any work,
    when the allowed removals cannot meet the budget, and LatencyTableError for a table of another base.
    """
    table = deciding_table(base, measured, config)
    check_reachable(table, base.unet.config, config)
    evolution = _Evolution(
        base, data, scorer, config, context, Budget.of(table, base.unet.config, config.latency_budget)
    )
    unet: EvolvedUNet = as_evolved(load_model(context.store, robust)).to(context.device)
    base.vae.to(context.device)
    rounds: list[EvolutionRound] = []
    for index in range(config.rounds):
        unet, finished = evolution.round(unet, index, rounds[-1] if rounds else None)
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
        config=config.meaning_of_stage(),
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


def deciding_table(
    base: BaseModel, measured: LatencyTable | None, config: ArchitectureEvolutionConfig
) -> LatencyTable:
    """The table that `config.decide_by` names: the measured one, or the base's MACs in a guided step."""
    if measured is not None and config.decide_by == "table":
        return measured
    return latency_profile.count(base, LatencyProfileConfig(backend="macs"))


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

    def round(
        self, unet: EvolvedUNet, index: int, last: EvolutionRound | None
    ) -> tuple[EvolvedUNet, EvolutionRound]:
        """Probe, act and train; or take the round from disk when it is finished there. `last` is the one before."""
        folder = self.context.work / f"round_{index}"
        found = load_round(self.context, folder, unet.spec)
        if found is not None:
            return found[0].to(self.context.device), found[1]
        before, config = unet.spec, self.config
        changes, gap = self.budget.changes(before), self.budget.gap(before)
        later = (config.rounds - index - 1) * config.actions_per_round

        def open_choices(known: Mapping[str, Estimate]) -> set[str]:
            return undecided(
                changes, known, config.confidence, gap=gap, actions=config.actions_per_round, later=later
            )

        evidence = score_changes(
            unet,
            changes,
            self.probe(index),
            earlier_evidence(last.scores if last else ()),
            undecided=open_choices,
            context=self.context,
            folder=folder,
        )
        losses = {key: item.upper(config.confidence) for key, item in evidence.pooled.items()}
        taken = choose(changes, losses, gap=gap, actions=config.actions_per_round, later=later)
        after = apply(before, taken, self.budget)
        unet = build(after[-1] if after else before, unet)
        outcome = self.train(unet, index, is_last=not later or not taken)
        finished = EvolutionRound(
            index=index,
            layout_before=before.stages,
            baseline_score=evidence.baseline,
            drift=evidence.drift,
            scores=evidence.scores(changes),
            actions=actions_of(taken, losses, after, self.budget),
            predicted_before=self.budget.predict(before),
            predicted_after=self.budget.predict(unet.spec),
            trained_iterations=outcome.iterations,
            curve=tuple(outcome.curve),
        )
        for action in finished.actions:
            logger.info("round=%d %s %s value=%.4g", index, action.kind, action.target, action.value)
        save_round(self.context, folder, unet, finished)
        return unet, finished

    def probe(self, index: int) -> Probe:
        """The probe of one round."""
        return Probe.of_round(
            self.base, self.data, self.scorer, self.config, seed=self.context.seed, index=index
        )

    def train(self, unet: EvolvedUNet, index: int, *, is_last: bool) -> TrainingOutcome:
        """A round's part of the one training of all rounds, in place; the last round's is all that is left.

        After the last round nothing is removed any more, so nothing is skipped either. The checkpoints belong to the
        architecture: where probes were lost, other scores can lead to another one.
        """
        sampling = Sampling(
            data=self.data,
            schedule=NoiseSchedule.from_config(self.base.scheduler_config),
            caption_dropout=self.config.caption_dropout,
            device=self.context.device,
        )
        training = self.config.training
        share = training.iterations // self.config.rounds
        iterations = range(index * share, training.iterations if is_last else (index + 1) * share)
        # Each round's warm-up is its own, no longer than a fifth of it.
        warmup = min(training.warmup_iterations, share // 5)
        unet.requires_grad_(True)
        outcome = train(
            unet,
            SkippingLoss(sampling, probability=0.0 if is_last else self.config.drop_probability),
            training=Part(training.model_copy(update={"warmup_iterations": warmup}), iterations),
            samples=self.data.order(SPLIT),
            seed=self.context.seed,
            folder=self.context.checkpoints(
                f"round_{index}/checkpoints/{content_hash(unet.spec.layout())[:16]}"
            ),
            progress=self.context.progress,
            description=f"{STAGE} round {index + 1}",
            device=self.context.device,
            processes=self.context.processes,
        )
        self.images_per_s = outcome.images_per_s or self.images_per_s
        return outcome


def _size(unet: nn.Module) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())
