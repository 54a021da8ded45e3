"""Why runs differ: keys of the configuration that change results, and the first stage with another cache key."""

import json
from pathlib import Path

from steps.cache.misses import PARTS
from steps.comparison.reasons import config_differences, first_difference
from steps.store import LocalStore
from tests.steps.comparison.made import SUBJECT, made_run


def test_only_what_differs_and_can_matter(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    first, second = (
        made_run(store, run, learning_rate=rate).report for run, rate in (("1", 1e-4), ("2", 2e-4))
    )
    second = second.model_copy(update={"config": second.config | {"run": {"name": "x", "seed": 3}}})
    found = config_differences([first, second])
    assert found["student_8.training.learning_rate"] == ("0.0001", "0.0002")
    assert found["run.seed"] == ("0", "3")
    assert not any(key.startswith(("run.name", "store.")) for key in found)


def test_the_first_stage_that_differs_says_why_as_long_as_the_cache_knows(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    reports = [made_run(store, run, learning_rate=rate).report for run, rate in (("1", 1e-4), ("2", 2e-4))]
    found = first_difference(store, *reports)
    assert found and (found.stage, found.why) == ("student_8", ())
    assert (found.shared, found.own) == (("start",), ("student_8", f"evaluation {SUBJECT}"))
    for rate in (1e-4, 2e-4):
        parts = {"version": 1, "seed": 0, "inputs": {}, "extra": {}, "config": {"student_8": {"rate": rate}}}
        store.put_document(f"stages/student_8/b{rate}", json.dumps({PARTS: parts}))
    known = first_difference(store, *reports)
    assert known and known.why == ("student_8.rate 0.0001 -> 0.0002",)


def test_a_result_that_is_shared_has_no_first_difference(tmp_path: Path) -> None:
    report = made_run(LocalStore(tmp_path), "1").report
    assert first_difference(LocalStore(tmp_path), report, report) is None


def test_stages_are_told_apart_by_key_and_without_one_by_what_they_left(tmp_path: Path) -> None:
    report = made_run(LocalStore(tmp_path), "1").report
    remade = [row.model_copy(update={"identity": f"again {row.stage}"}) for row in report.stages]
    same_keys = report.model_copy(update={"stages": tuple(remade)})
    assert first_difference(LocalStore(tmp_path), report, same_keys) is None
    older = [row.model_copy(update={"key": ""}) for row in remade]
    found = first_difference(LocalStore(tmp_path), report, report.model_copy(update={"stages": tuple(older)}))
    assert found and found.stage == "start"
