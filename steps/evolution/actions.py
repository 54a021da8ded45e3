"""What a round does: which units go and which blocks are copied (P Algorithm 1). Pure, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts_schema.architecture import ArchitectureSpec, EvolutionAction, UnitScore
from artifacts_schema.config import ArchitectureEvolutionConfig
from artifacts_schema.latency import LatencyTable
from steps.files.errors import BudgetError
from steps.latency.table import predict
from steps.unet.architecture import Unit, copy_block, copyable_blocks, list_units, remove_unit
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

    def is_met(self, spec: ArchitectureSpec) -> bool:
        """True when `spec` is fast enough."""
        return self.predict(spec) <= self.limit

    def saving(self, spec: ArchitectureSpec, unit: Unit) -> float:
        """What the removal of a unit saves."""
        return self.predict(spec) - self.predict(remove_unit(spec, self.unet_config, unit.id))

    def best_reachable(self, spec: ArchitectureSpec, removals: int | None = None) -> float:
        """The lowest latency that so many removals (None: any number) reach: the largest units first."""
        savings = {unit: self.saving(spec, unit) for unit in list_units(spec, self.unet_config)}
        gone: set[str] = set()
        latency, left = self.predict(spec), len(savings) if removals is None else removals
        for unit in sorted(savings, key=lambda unit: -savings[unit]):
            if left and not gone.intersection(unit.blocks):
                gone.update(unit.blocks)
                latency -= savings[unit]
                left -= 1
        return latency


def check_reachable(
    table: LatencyTable, unet_config: Mapping[str, Any], config: ArchitectureEvolutionConfig
) -> None:
    """Raise BudgetError, naming the best reachable, when the allowed removals cannot meet the latency budget.

    Cheap and without torch, so that it can be asked before any training.
    """
    budget = Budget.of(table, unet_config, config.latency_budget)
    base = full_spec(unet_config)
    whole = budget.predict(base)
    removals = config.rounds * config.actions_per_round
    best, least = budget.best_reachable(base, removals), budget.best_reachable(base)
    if best <= budget.limit:
        return
    advice = f"raise architecture_evolution.latency_budget to at least {best / whole:.3f}"
    if least <= budget.limit:
        advice += f", or rounds or actions_per_round (all removals together reach {least / whole:.3f})"
    raise BudgetError(
        f"expected a UNet of at most {config.latency_budget:g} of the base's latency, but the best "
        f"reachable with {removals} removals is {best / whole:.3f}; {advice}"
    )


def choose_actions(
    spec: ArchitectureSpec, scores: Sequence[UnitScore], budget: Budget, *, actions: int, later: int = 0
) -> tuple[ArchitectureSpec, list[EvolutionAction]]:
    """The actions of one round and the architecture after them.

    A round removes until the budget is met, or copies when it was met already: copies are for blocks that
    scored well in the smaller network. While the budget is unmet the unit of the smallest value goes (ties:
    the larger latency first), passing over one whose choice would leave the budget out of reach of the
    `actions` of this round and `later` ones of the rounds to come. Once it is met, the block of the largest
    value is copied, if the budget still holds. Scores are those at the beginning of the round; the latency is
    predicted anew after every action.
    """
    taken: list[EvolutionAction] = []
    copying = budget.is_met(spec)
    for number in range(actions):
        left = actions - number - 1 + later
        if copying:
            found = _copy(spec, scores, budget, done={action.target for action in taken})
        else:
            found = None if budget.is_met(spec) else _removal(spec, scores, budget, left=left)
        if found is None:
            break
        spec, action = found
        taken.append(action)
    return spec, taken


def _removal(
    spec: ArchitectureSpec, scores: Sequence[UnitScore], budget: Budget, *, left: int
) -> tuple[ArchitectureSpec, EvolutionAction] | None:
    """Removal of the least valuable unit after which `left` more removals can still meet the budget."""
    present = {unit.id: unit for unit in list_units(spec, budget.unet_config)}
    candidates = [score for score in scores if score.unit in present]
    candidates.sort(key=lambda score: (score.value, -score.latency))
    for score in candidates:
        smaller = remove_unit(spec, budget.unet_config, score.unit)
        if budget.best_reachable(smaller, left) <= budget.limit:
            return smaller, _action("remove", score.unit, score, budget.predict(smaller))
    return None


def _copy(
    spec: ArchitectureSpec, scores: Sequence[UnitScore], budget: Budget, *, done: set[str]
) -> tuple[ArchitectureSpec, EvolutionAction] | None:
    """Copy of the most valuable block that fits the budget and was not copied this round; none of value 0."""
    allowed = copyable_blocks(spec, budget.unet_config)
    for score in sorted(scores, key=lambda score: -score.value):
        # A pair is copied by its down ResNet: the up ResNet takes a skip and cannot be.
        block = score.unit.split("+")[0]
        if score.value <= 0.0 or block not in allowed or block in done:
            continue
        bigger = copy_block(spec, budget.unet_config, block)
        if budget.is_met(bigger):
            return bigger, _action("copy", block, score, budget.predict(bigger))
    return None


def _action(kind: Any, target: str, score: UnitScore, predicted: float) -> EvolutionAction:
    return EvolutionAction(kind=kind, target=target, value=score.value, predicted_after=predicted)
