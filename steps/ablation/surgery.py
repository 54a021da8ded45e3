"""Arms that take blocks out of the UNet: untrained, stage by stage (P Fig. 5), or in an order and repaired."""

import json
import random
from collections.abc import Mapping
from typing import Any

from torch import nn

from artifacts_schema.ablation import ArmConfig
from artifacts_schema.architecture import ArchitectureSpec
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.latency import LatencyTable
from steps.ablation.students import Made
from steps.diffusion.losses import SPLIT, Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.evolution.actions import Budget
from steps.files.errors import BudgetError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.stored import load_model
from steps.training.loop import train
from steps.unet.architecture import SNAPFUSION_SD15_REMOVED, list_units, remove_unit
from steps.unet.conversion import as_evolved, build
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet


def dropped(context: StageContext, weights: Mapping[str, Any], arm: ArmConfig) -> dict[str, nn.Module]:
    """`arm.start` without all units of one kind, by the stage of the UNet that lacks them; nothing is trained."""
    whole = as_evolved(load_model(context.store, weights[arm.start])).to(context.device)
    by_stage: dict[str, list[str]] = {}
    for unit in list_units(whole.spec, whole.geometry()):
        if f".{arm.drop}." in unit.id:
            by_stage.setdefault(unit.id.partition(f".{arm.drop}.")[0], []).append(unit.id)
    return {stage: _without(whole, units) for stage, units in by_stage.items()}


def _without(whole: EvolvedUNet, units: list[str]) -> nn.Module:
    spec = whole.spec
    for unit in units:
        if unit in {item.id for item in list_units(spec, whole.geometry())}:
            spec = remove_unit(spec, whole.geometry(), unit)
    model: nn.Module = build(spec, whole).eval().requires_grad_(False)
    return model


def repaired(
    inputs: StageInputs,
    weights: Mapping[str, Any],
    arm: ArmConfig,
    config: SnapFusionConfig,
    context: StageContext,
    *,
    table: LatencyTable,
    evolved: ArchitectureSpec,
) -> Made:
    """The robust UNet as small as the run's latency budget asks, trained on as evolution's last round is."""
    robust = as_evolved(load_model(context.store, weights["robust_training"])).to(context.device)
    evolution = config.architecture_evolution
    budget = Budget.of(table, robust.geometry(), evolution.latency_budget)
    spec = evolved if arm.order == "evolved" else in_order(robust, arm.order, budget, context.seed)
    sampling = Sampling(
        data=inputs.data,
        schedule=NoiseSchedule.from_config(inputs.base.scheduler_config),
        caption_dropout=evolution.caption_dropout,
        device=context.device,
    )
    outcome = train(
        build(spec, robust).requires_grad_(True),
        SkippingLoss(sampling, probability=0.0),
        training=evolution.training,
        samples=inputs.data.order(SPLIT),
        seed=context.seed,
        folder=context.checkpoints(),
        progress=context.progress,
        description=f"{context.label}, repair",
        device=context.device,
    )
    model = outcome.model.requires_grad_(False).eval()
    return Made(model, tuple(outcome.curve), outcome.iterations)


def in_order(unet: EvolvedUNet, order: str, budget: Budget, seed: int) -> ArchitectureSpec:
    """The UNet's architecture without as few units, in this order, as meet the budget. Raises BudgetError."""
    spec = unet.spec
    units = [change.target for change in sorted(budget.removals(spec), key=lambda change: -change.saves)]
    if order == "pattern":
        units = [*(unit for unit in SNAPFUSION_SD15_REMOVED if unit in units), *units]
    elif order == "random":
        random.Random(json.dumps([seed, order])).shuffle(units)
    for unit in units:
        if budget.is_met(spec):
            break
        if unit in {item.id for item in list_units(spec, unet.geometry())}:
            spec = remove_unit(spec, unet.geometry(), unit)
    if not budget.is_met(spec):
        raise BudgetError(
            f"expected the removals to reach {budget.limit:.4g}, the least is {budget.predict(spec):.4g}; raise "
            "architecture_evolution.latency_budget"
        )
    return spec
