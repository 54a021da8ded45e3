"""A stage's card has Metaflow's scripts only while something in it needs them."""

from types import SimpleNamespace
from typing import Any

from metaflow.cards import ProgressBar
from metaflow.plugins import CARDS

from flows import snapfusion_flow  # registers the type  # noqa: F401
from flows.cards import render
from flows.stage_card import StageCard
from steps.report.content import Table, Text
from tests.flows.test_cards import HOSTILE

TASK = SimpleNamespace(pathspec="SnapFusionFlow/1/student_8/2")


def page(*blocks: Any, runtime: bool = False) -> str:
    found: list[Any] = []
    render(found, blocks)
    bar = ProgressBar(max=64, label=HOSTILE)
    bar.update(64, metadata="loss 0.1")
    parts = [component.render() for component in (*found, bar)]
    section = {"type": "section", "contents": parts}  # as Metaflow hands them over
    return StageCard(components=[section], graph=None).render(TASK, runtime=runtime)


def test_a_finished_card_of_text_and_bars_is_light_and_runs_nothing() -> None:
    found = page(Text(HOSTILE))
    assert len(found) < 3000
    assert "<script" not in found and "<img" not in found and "&lt;img" in found
    assert 'value="64" max="64"' in found and "loss 0.1" in found


def test_what_needs_scripts_keeps_them() -> None:
    assert len(page(Table(("a",), (("b",),)))) > 1_000_000
    assert len(page(Text("a"), runtime=True)) > 1_000_000


def test_metaflow_knows_the_type() -> None:
    assert StageCard in CARDS
