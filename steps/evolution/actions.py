"""Latency budget, the changes an architecture allows, and making them (P Algorithm 1). Without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from artifacts_schema.architecture import ArchitectureSpec, EvolutionAction
from artifacts_schema.latency import LatencyTable
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig
from steps.evolution.rule import Change, best_saving, reachable
from steps.files.errors import BudgetError
from steps.latency.table import predict
from steps.unet.architecture import copy_block, copyable_blocks, list_units, remove_unit
from steps.unet.blocks import full_spec


@dataclass(frozen=True)
class Budget:
    """The latency objective: `limit` is in the table's unit."""

    table: LatencyTable
    unet_config: Mapping[str, Any]
    limit: float

    @classmethod
    def of(cls, table: LatencyTable, unet_config: Mapping[str, Any], fraction: float) -> "Budget":
        """`fraction` of the base UNet's latency in this table."""
        return cls(table, unet_config, fraction * predict(table, full_spec(unet_config)))

    def predict(self, spec: ArchitectureSpec) -> float:
        """Latency of a guided step of `spec`."""
        return predict(self.table, spec)

    def gap(self, spec: ArchitectureSpec) -> float:
        """What `spec` has yet to save; at most 0 when it is fast enough."""
        return self.predict(spec) - self.limit

    def is_met(self, spec: ArchitectureSpec) -> bool:
        """True when `spec` is fast enough."""
        return self.gap(spec) <= 0.0

    def removals(self, spec: ArchitectureSpec) -> list[Change]:
        """The removal of every unit of `spec`."""
        whole = self.predict(spec)
        return [
            Change(
                "remove",
                unit.id,
                frozenset(unit.blocks),
                whole - self.predict(remove_unit(spec, self.unet_config, unit.id)),
            )
            for unit in list_units(spec, self.unet_config)
        ]

    def copies(self, spec: ArchitectureSpec) -> list[Change]:
        """One more copy of every block that can be copied. A pair is copied by its down ResNet."""
        whole = self.predict(spec)
        return [
            Change(
                "copy",
                block,
                frozenset({block}),
                whole - self.predict(copy_block(spec, self.unet_config, block)),
            )
            for block in copyable_blocks(spec, self.unet_config)
        ]

    def changes(self, spec: ArchitectureSpec) -> list[Change]:
        """What a round may do: removals; where the budget is met, copies, too."""
        return self.removals(spec) + (self.copies(spec) if self.is_met(spec) else [])


def check_reachable(
    table: LatencyTable, unet_config: Mapping[str, Any], config: ArchitectureEvolutionConfig
) -> None:
    """Raise BudgetError, naming the best reachable, when the allowed removals cannot meet the latency budget.

    Cheap and without torch, so that it can be asked before any training.
    """
    budget = Budget.of(table, unet_config, config.latency_budget)
    base = full_spec(unet_config)
    whole, removals = budget.predict(base), budget.removals(base)
    most = config.rounds * config.actions_per_round
    if budget.is_met(base) or reachable(removals, gap=budget.gap(base), most=most):
        return
    best = whole - best_saving(removals, most)
    advice = f"raise architecture_evolution.latency_budget to at least {ceil(1e3 * best / whole) / 1e3:.3f}"
    if reachable(removals, gap=budget.gap(base), most=len(removals)):
        least = whole - best_saving(removals, len(removals))
        advice += f", or rounds or actions_per_round (all removals together reach {least / whole:.3f})"
    raise BudgetError(
        f"expected a UNet of at most {config.latency_budget:g} of the base's latency, but the best "
        f"reachable with {most} removals is {best / whole:.3f}; {advice}"
    )


def apply(spec: ArchitectureSpec, changes: Sequence[Change], budget: Budget) -> list[ArchitectureSpec]:
    """The architectures after each of the changes, made one after the other."""
    specs = []
    for change in changes:
        make = remove_unit if change.kind == "remove" else copy_block
        spec = make(spec, budget.unet_config, change.target)
        specs.append(spec)
    return specs


def actions_of(
    changes: Sequence[Change], losses: Mapping[str, float], after: Sequence[ArchitectureSpec], budget: Budget
) -> tuple[EvolutionAction, ...]:
    """The record of changes that were made, from the bounds that decided."""
    return tuple(
        EvolutionAction(
            kind=change.kind,
            target=change.target,
            # What is removed saves something; a copy costs something, unless its row in the table is 0.
            value=losses[change.key] / change.saves if change.saves else 0.0,
            predicted_after=budget.predict(spec),
        )
        for change, spec in zip(changes, after, strict=True)
    )
