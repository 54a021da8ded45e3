"""The changes an architecture allows, making them, and the budget."""

import re
from dataclasses import replace

import pytest

from artifacts_schema.latency import LatencyTable
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig, LatencyProfileConfig
from steps.evolution.actions import Budget, actions_of, apply, check_reachable
from steps.evolution.rule import best_saving, plan_removals
from steps.files.errors import BudgetError, LatencyTableError
from steps.stages import latency_profile
from steps.unet.architecture import copyable_blocks, list_units
from steps.unet.blocks import SD15_UNET_CONFIG, full_spec
from tests.factories import TINY_CONFIG, tiny_base

FULL = full_spec(TINY_CONFIG)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return latency_profile.count(tiny_base(), LatencyProfileConfig(backend="macs"))


def test_a_round_may_remove_every_unit_and_copies_only_within_the_budget(table: LatencyTable) -> None:
    tight, met = Budget.of(table, TINY_CONFIG, 0.9), Budget.of(table, TINY_CONFIG, 1.0)
    units = {f"remove {unit.id}" for unit in list_units(FULL, TINY_CONFIG)}
    assert {change.key for change in tight.changes(FULL)} == units
    copies = {f"copy {block}" for block in copyable_blocks(FULL, TINY_CONFIG)}
    assert {change.key for change in met.changes(FULL)} == units | copies
    by_key = {change.key: change for change in met.changes(FULL)}
    pair = by_key["remove down.3.resnets.1+up.0.resnets.0"]
    assert pair.blocks == {"down.3.resnets.1", "up.0.resnets.0"}
    assert pair.blocks & by_key["remove up.0.resnets.0"].blocks
    assert pair.saves > 0.0 > by_key["copy down.3.resnets.1"].saves


def test_changes_are_made_in_order_and_save_what_they_say(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 1.0)
    by_key = {change.key: change for change in budget.changes(FULL)}
    taken = [by_key["remove down.0.attentions.0"], by_key["copy up.1.attentions.0"]]
    after = apply(FULL, taken, budget)
    assert [spec.removed for spec in after] == [("down.0.attentions.0",)] * 2
    assert after[-1].copied == ("up.1.attentions.0.copy1",)
    saved = sum(change.saves for change in taken)
    assert budget.predict(after[-1]) == pytest.approx(budget.predict(FULL) - saved)
    bounds = {taken[0].key: 0.2, taken[1].key: -0.1}
    actions = actions_of(taken, bounds, after, budget)
    assert [(a.kind, a.target) for a in actions] == [
        ("remove", "down.0.attentions.0"),
        ("copy", "up.1.attentions.0"),
    ]
    assert actions[0].value == pytest.approx(0.2 / taken[0].saves)
    assert actions[1].value == pytest.approx(-0.1 / taken[1].saves)
    assert actions[1].value > 0.0  # what is gained per latency spent
    assert actions[1].predicted_after == pytest.approx(budget.predict(after[-1]))
    assert apply(FULL, [], budget) == []
    free = replace(taken[1], saves=0.0)
    assert [a.value for a in actions_of([free], {free.key: -0.1}, after[1:], budget)] == [0.0]


def test_a_plan_on_the_real_table_meets_the_budget_without_an_unneeded_removal(table: LatencyTable) -> None:
    budget = Budget.of(table, TINY_CONFIG, 0.6)
    changes = budget.changes(FULL)
    losses = {change.key: 0.01 * (len(change.target) % 7) for change in changes}
    plan = plan_removals(changes, losses, gap=budget.gap(FULL), most=20)
    assert budget.is_met(apply(FULL, plan, budget)[-1])
    for change in plan:
        assert not budget.is_met(apply(FULL, [other for other in plan if other is not change], budget)[-1])


def test_unreachable_budget_names_the_best_reachable(table: LatencyTable) -> None:
    config = ArchitectureEvolutionConfig(latency_budget=0.05, rounds=3, actions_per_round=4)
    budget = Budget.of(table, TINY_CONFIG, 0.05)
    best = 1.0 - best_saving(budget.removals(FULL), 99) / budget.predict(FULL)
    with pytest.raises(BudgetError, match=r"12 removals is .*at least 0\.\d+$") as error:
        check_reachable(table, TINY_CONFIG, config)
    assert "or rounds" not in str(error.value)
    few = ArchitectureEvolutionConfig(latency_budget=best + 0.01, rounds=1, actions_per_round=1)
    with pytest.raises(BudgetError, match=f"all removals together reach {best:.3f}"):
        check_reachable(table, TINY_CONFIG, few)
    check_reachable(table, TINY_CONFIG, few.model_copy(update={"rounds": 40}))


def test_the_advised_budget_is_reachable(table: LatencyTable) -> None:
    config = ArchitectureEvolutionConfig(latency_budget=0.05, rounds=1, actions_per_round=4)
    with pytest.raises(BudgetError) as error:
        check_reachable(table, TINY_CONFIG, config)
    advised = float(re.findall(r"at least (0\.\d+)", str(error.value))[0])
    check_reachable(table, TINY_CONFIG, config.model_copy(update={"latency_budget": advised}))


def test_table_of_another_base_is_refused(table: LatencyTable) -> None:
    with pytest.raises(LatencyTableError):
        check_reachable(table, SD15_UNET_CONFIG, ArchitectureEvolutionConfig())
