"""The card of a student's folder: numbers with intervals, and foreign text that stays text."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.base import Interval
from artifacts_schema.readers import read_record
from artifacts_schema.references import ObjectRef
from steps.report.model_card import card_pictures, model_card, plain
from steps.report.page import RunRecords

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"
HOSTILE = "<img src=x onerror=alert(1)> ![a](http://b) `c` | **d**\n# e www.f.g"


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def card() -> str:
    evaluation = stored("evaluation_v1").model_copy(
        update={"variant": "student_8_small_decoder", "captions": (HOSTILE, "red flag")}
    )
    manifest = stored("bundle_v1").model_copy(update={"attribution": "OpenMoji, CC BY-SA 4.0"})
    decoder = stored("training_v1").model_copy(update={"metrics": {"parameters_small": 2e6}})
    records = RunRecords(
        "run", False, stored("latency_v1"), {"decoder_distillation": decoder}, stored("evolution_v1"),
        [evaluation], [], [], [], manifest,
    )  # fmt: skip
    quality = {"student8_vs_base50.clip_difference": Interval(value=-0.5, low=-0.75, high=-0.25, n=64)}
    report = stored("report_v1").model_copy(
        update={
            "name": HOSTILE, "quality": quality, "labels": ("smoke",),
            "config": {"evaluation": {"grid_pictures": 2}},
            "grids": {"student_8_small_decoder": ObjectRef(uri="", sha256="a" * 64, bytes=1)},
        }
    )  # fmt: skip
    assert set(card_pictures(report)) == {"pictures/student_8_small_decoder.png"}
    return model_card(records, report)


def test_it_says_what_a_reader_must_know(card: str) -> None:
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    for part in (
        "> **smoke**",
        "2.00 M parameters",
        "trust_remote_code=True",
        "OpenMoji, CC BY-SA 4.0",
        "## Limits",
    ):
        assert part in card
    assert "| student8_vs_base50.clip_difference | -0.5000 | -0.7500 to -0.2500 | 64 |" in card
    assert "![student_8_small_decoder](pictures/student_8_small_decoder.png)" in card
    assert "red flag" in card


def test_foreign_text_is_no_markup(card: str) -> None:
    assert plain(HOSTILE) in card
    for part in ("<img", "![a]", "`c`", "**d**", "\n# e", "http://b", " www.f"):
        assert part not in card
