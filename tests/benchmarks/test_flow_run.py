"""The share of time outside the stage functions."""

import pytest

from benchmarks.flow_run import covered_seconds


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], 0.0),
        ([(0.0, 2.0), (3.0, 4.0)], 3.0),
        ([(3.0, 5.0), (0.0, 4.0)], 5.0),
        ([(0.0, 10.0), (1.0, 2.0), (9.0, 12.0)], 12.0),
    ],
)
def test_time_of_tasks_side_by_side_counts_once(
    intervals: list[tuple[float, float]], expected: float
) -> None:
    assert covered_seconds(intervals) == pytest.approx(expected)
