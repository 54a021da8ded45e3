"""The share of time outside the stage functions."""

from pathlib import Path

import pytest

from artifacts_schema.config import parse_config
from artifacts_schema.readers import read_record
from benchmarks.flow_run import covered_seconds, stage_intervals
from steps.store import LocalStore

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


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


def test_the_bundle_which_has_no_time_of_its_own_is_passed_over(tmp_path: Path) -> None:
    store, inputs = LocalStore(tmp_path), {}
    for name in ("run_plan_v1", "bundle_v1"):
        record = read_record((RECORDS / f"{name}.json").read_text())
        inputs[name] = record.identity()
        store.put_document(f"records/{record.identity()}", record.to_json())
    config = parse_config({"store": {"root": str(tmp_path)}}).model_dump(mode="json")
    ((start, end),) = stage_intervals({"config": config, "inputs": inputs})
    assert end > start
