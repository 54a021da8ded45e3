"""Which units go and which blocks are copied."""

import pytest

from artifacts_schema.architecture import UnitScore
from artifacts_schema.config import ArchitectureEvolutionConfig, LatencyProfileConfig
from artifacts_schema.latency import LatencyTable
from steps.evolution.actions import Budget, check_reachable, choose_actions
from steps.files.errors import BudgetError, LatencyTableError
from steps.stages import latency_profile
from steps.unet.architecture import list_units, remove_unit
from steps.unet.blocks import SD15_UNET_CONFIG, full_spec
from tests.factories import TINY_CONFIG, tiny_base

FULL = full_spec(TINY_CONFIG)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return latency_profile.count(tiny_base(), LatencyProfileConfig(backend="macs"))


def _scores(budget: Budget, values: dict[str, float], default: float = 1.0) -> list[UnitScore]:
    return [
        UnitScore(
            unit=unit.id,
            kind=unit.kind,
            difference=0.0,
            standard_error=0.0,
            n=4,
            latency=budget.saving(FULL, unit),
            value=values.get(unit.id, default),
        )
        for unit in list_units(FULL, TINY_CONFIG)
    ]


def test_the_least_valuable_units_go_first(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.8)
    values = {"mid.resnets.0": 0.1, "up.1.attentions.1": 0.2}
    spec, actions = choose_actions(FULL, _scores(budget, values), budget, actions=2, later=20)
    assert [action.target for action in actions] == ["mid.resnets.0", "up.1.attentions.1"]
    assert {action.kind for action in actions} == {"remove"}
    assert set(spec.removed) == {"mid.resnets.0", "up.1.attentions.1"}
    assert actions[-1].predicted_after == pytest.approx(budget.predict(spec))


def test_ties_go_to_the_larger_latency(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.8)
    scores = _scores(budget, {}, default=0.0)
    _, actions = choose_actions(FULL, scores, budget, actions=1, later=20)
    assert actions[0].target == max(scores, key=lambda score: score.latency).unit


def test_removal_stops_once_the_budget_is_met(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.9)
    spec, actions = choose_actions(FULL, _scores(budget, {}), budget, actions=30)
    assert budget.is_met(spec)
    assert not budget.is_met(FULL)
    assert len(actions) < 30
    assert actions[-1].predicted_after <= budget.limit < actions[-2].predicted_after


def test_a_worthless_but_small_unit_is_passed_over_where_the_budget_would_get_out_of_reach(
    table: LatencyTable,
) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.6)
    fewest = next(n for n in range(1, 30) if budget.best_reachable(FULL, n) <= budget.limit)
    values = {"mid.resnets.0": 0.0, "mid.attentions.0": 0.0}
    spec, actions = choose_actions(FULL, _scores(budget, values), budget, actions=fewest)
    assert budget.is_met(spec)
    assert len(actions) == fewest
    relaxed, _ = choose_actions(FULL, _scores(budget, values), budget, actions=fewest, later=30)
    assert "mid.resnets.0" in relaxed.removed


def test_a_removed_pair_takes_its_lone_resnet_off_the_list(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.7)
    pair, lone = "down.3.resnets.1+up.0.resnets.0", "up.0.resnets.0"
    _, actions = choose_actions(FULL, _scores(budget, {pair: 0.0, lone: 0.0}), budget, actions=3, later=30)
    targets = [action.target for action in actions]
    assert pair in targets
    assert lone not in targets


def test_once_the_budget_holds_the_most_valuable_block_is_copied(table: LatencyTable) -> None:
    small = remove_unit(FULL, TINY_CONFIG, "down.0.attentions.0")
    budget = Budget.of(table, TINY_CONFIG, 1.0)
    values = {"up.1.attentions.0": 3.0, "down.3.resnets.0+up.0.resnets.1": 2.0, "up.0.resnets.2": 9.0}
    spec, actions = choose_actions(small, _scores(budget, values, default=0.0), budget, actions=5)
    assert [(a.kind, a.target) for a in actions] == [
        ("copy", "up.1.attentions.0"),
        ("copy", "down.3.resnets.0"),
    ]
    assert spec.copied == ("down.3.resnets.0.copy1", "up.1.attentions.0.copy1")
    assert budget.is_met(spec)


def test_no_copy_that_breaks_the_budget_and_none_of_worthless_blocks(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 1.0)
    spec, actions = choose_actions(FULL, _scores(budget, {"up.1.attentions.0": 3.0}), budget, actions=5)
    assert (spec, actions) == (FULL, [])
    small = remove_unit(FULL, TINY_CONFIG, "down.0.attentions.0")
    assert choose_actions(small, _scores(budget, {}, default=0.0), budget, actions=5)[1] == []


def test_unreachable_budget_names_the_best_reachable(table: LatencyTable) -> None:
    config = ArchitectureEvolutionConfig(latency_budget=0.05, rounds=3, actions_per_round=4)
    budget = Budget.of(table, TINY_CONFIG, 0.05)
    best = budget.best_reachable(FULL) / budget.predict(FULL)
    with pytest.raises(BudgetError, match=r"12 removals is .*at least 0\.\d+$") as error:
        check_reachable(table, TINY_CONFIG, config)
    assert "or rounds" not in str(error.value)
    few = ArchitectureEvolutionConfig(latency_budget=best + 0.01, rounds=1, actions_per_round=1)
    with pytest.raises(BudgetError, match=f"all removals together reach {best:.3f}"):
        check_reachable(table, TINY_CONFIG, few)
    check_reachable(table, TINY_CONFIG, few.model_copy(update={"rounds": 40}))


def test_best_reachable_really_is_reached(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.5)
    spec = FULL
    while units := list_units(spec, TINY_CONFIG):
        spec = remove_unit(spec, TINY_CONFIG, max(units, key=lambda unit: len(unit.blocks)).id)
    assert budget.best_reachable(FULL) >= budget.predict(spec) - 1e-6


def test_table_of_another_base_is_refused(table: LatencyTable) -> None:
    with pytest.raises(LatencyTableError):
        check_reachable(table, SD15_UNET_CONFIG, ArchitectureEvolutionConfig())
