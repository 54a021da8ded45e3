"""What tells runs apart in Metaflow's lists: tags that survive `resume`, artifacts that its UI shows."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.config import load_config_file, parse_config
from artifacts_schema.readers import read_record
from flows import tags
from flows.tags import SMALL, fitting, keep_tags, preset_of, small_artifacts, tags_of

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests" / "fixtures" / "records"


def smoke(**changes: Any) -> Any:
    config = load_config_file(ROOT / "configs" / "smoke.toml").model_dump(mode="json")
    return parse_config(config | changes)


def test_a_run_is_tagged_with_what_differs_from_the_nearest_preset() -> None:
    config = smoke()
    training = config.student_8.training.model_copy(update={"learning_rate": 2e-4})
    changed = config.model_copy(
        update={"student_8": config.student_8.model_copy(update={"training": training})}
    )
    assert preset_of(config) == ("smoke", {})
    assert tags_of(changed) == [
        "name:smoke", "base:micro", "preset:smoke", "student_8.learning_rate:2e-4", "smoke",
    ]  # fmt: skip


def test_a_finished_run_is_tagged_with_its_numbers() -> None:
    report: Any = read_record((RECORDS / "report_v1.json").read_text())
    evolution: Any = read_record((RECORDS / "evolution_v1.json").read_text())
    evolution = evolution.model_copy(update={"latency_unit": "ms", "predicted_latency": 12.345})
    row = {
        "variant": "student_8_small_decoder",
        "point": {"kernel_distance": {"value": 0.12345}, "clip_score": {"value": 0.7}},
    }
    found = tags_of(smoke(), report.model_copy(update={"evaluations": (row,)}), evolution)
    assert found[-3:] == ["distance:0.1235", "clip:0.7000", "ms:12.3"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2e-4, "2e-4"),
        (3.46e8, "3.46e8"),
        (0.75, "0.75"),
        (0.0, "0"),
        (12.3, "12.3"),
        ([499], "[499]"),
        ("macs", "macs"),
    ],
)
def test_values_are_short(value: Any, words: str) -> None:
    assert tags._value(value) == words


def test_only_a_resumed_run_is_tagged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[list[str]] = []
    run = SimpleNamespace(add_tags=added.append)
    monkeypatch.setattr(tags, "Run", lambda *_, **__: run)
    flow = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: smoke().model_dump(mode="json")))
    for origin in (None, "7"):
        monkeypatch.setattr(
            tags, "current", SimpleNamespace(origin_run_id=origin, run_id="8", flow_name="SnapFusionFlow")
        )
        keep_tags(flow)
    assert added == [tags_of(smoke())]


def test_artifacts_are_small_enough_for_the_ui() -> None:
    report: Any = read_record((RECORDS / "report_v1.json").read_text())
    crowded = report.model_copy(
        update={"headline": {f"a.long.name.of.a.number.{n}": n / 7 for n in range(500)}}
    )
    found = small_artifacts(crowded, smoke(), "é" * 9000)
    assert set(found) == {"headline", "config_changes", "verdict"}
    assert all(len(pickle.dumps(value)) < SMALL for value in found.values())
    assert found["headline"]["more"] == 500 - (len(found["headline"]) - 1)
    assert fitting({"a": 1}) == {"a": 1}
