"""What is concluded of two runs: only what licensed instruments decide, and nothing where things point both ways."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.base import Interval
from steps.comparison.measures import Metric, Pair
from steps.comparison.page import compare_runs
from steps.files.errors import EvaluationError, SnapFusionError
from steps.store import LocalStore
from tests.steps.comparison.made import made_run


def pair(tmp_path: Path, **other: Any) -> Pair:
    store = LocalStore(tmp_path)
    return compare_runs(store, [made_run(store, "1"), made_run(store, "2", **other)]).pairs[0]


def outcomes(found: Pair) -> dict[str, str]:
    return {item.name: item.outcome for item in found.criteria}


@pytest.mark.parametrize(
    ("other", "outcome"),
    [
        ({"clip": 0.1}, "better"),
        ({"clip": -0.1}, "worse"),
        ({"away": 1.0}, "worse"),
        ({}, "same"),
        ({"latency": 0.5}, "better"),
        ({"size": 5.0}, "worse"),
        ({"clip": 0.1, "latency": 1.5}, "undecided"),
        ({"clip": 1e-4}, "better"),
        ({"clip": 0.1, "licensed": False}, "undecided"),
        ({"clip": 0.1, "licensed": False, "latency": 0.5}, "undecided"),
    ],
)
def test_the_verdict(tmp_path: Path, other: dict[str, Any], outcome: str) -> None:
    found = pair(tmp_path, **other)
    assert found.outcome == outcome
    assert found.sentence.startswith("run-2 is ") and "run-1" in found.sentence


def test_boxes_say_value_change_and_why(tmp_path: Path) -> None:
    found = {item.name: item for item in pair(tmp_path, latency=0.8, size=5.0).criteria}
    assert (found["step latency"].value, found["step latency"].change) == ("8 ms", "-20.0%")
    assert (found["size"].value, found["size"].change) == ("5.00 MiB", "+25.0%")
    assert found["CLIP"].change == found["distance"].change == "the same pictures"
    assert list(found) == ["distance", "CLIP", "step latency", "size", "cost"]


def test_without_a_licence_the_numbers_are_shown_and_decide_nothing(tmp_path: Path) -> None:
    found = pair(tmp_path, clip=0.1, licensed=False)
    clip = next(item for item in found.criteria if item.name == "CLIP")
    assert clip.outcome == "undecided" and "names no licence" in clip.note
    assert "CLIP looks better, by an instrument without licence" in found.sentence


def test_unlike_protocols_are_refused_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"of run 1 .* of run 2 .*\(noise_seed: 1 and 7\)"):
        pair(tmp_path, protocol={"noise_seed": 7})


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(SnapFusionError, match=r"2 to 6 different runs, found 1 \(1\)"):
        compare_runs(store, [made_run(store, "1")])


def test_the_best_is_marked_where_there_is_one() -> None:
    low, high = (Interval(value=value, low=0.0, high=1.0, n=9) for value in (0.2, 0.4))
    assert Metric("", (high, low, None), False).best() == (1,)
    assert Metric("", (high, low, high), True).best() == (0, 2)
    assert Metric("", (low, low), True).best() == ()
    assert Metric("", (low, None), True).best() == ()
