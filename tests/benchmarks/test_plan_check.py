"""A plan is held against a run stage by stage."""

import pytest

from benchmarks.plan_check import errors, taken


def test_tasks_of_a_stage_count_together_and_the_worst_stage_is_named() -> None:
    measured = taken(
        [("start", 50.0), ("evaluation base_50", 60.0), ("evaluation base_8", 40.0), ("report", 9.0)]
    )
    assert measured == {"start": 50.0, "evaluation": 100.0, "report": 9.0}
    rows = {row.name: row for row in errors({"start": 60.0, "evaluation": 70.0, "student_8": 5.0}, measured)}
    assert rows["plan.error.start"].value == pytest.approx(0.2)
    assert rows["plan.error.evaluation"].value == pytest.approx(-0.3)
    assert rows["plan.error.sum"].value == pytest.approx(130 / 150 - 1)
    assert rows["plan.default_error"].value == pytest.approx(0.3)
    assert rows["plan.default_error"].note == "evaluation, the worst stage"
    assert "plan.error.student_8" not in rows
