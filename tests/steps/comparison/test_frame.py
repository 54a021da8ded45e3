"""A run as one flat row."""

from pathlib import Path

import pytest

from steps.comparison.frame import headline_of, row_of
from steps.store import LocalStore
from tests.steps.comparison.made import made_run


def test_configuration_headline_intervals_and_cost(tmp_path: Path) -> None:
    report = made_run(LocalStore(tmp_path), "1", clip=0.1).report
    report = report.model_copy(update={"config": report.config | {"compute": {"price_per_hour": 6.0}}})
    row = row_of(report)
    assert (row["run"], row["name"], row["config.student_8.training.learning_rate"]) == ("1", "run-1", 1e-4)
    name = "student8_vs_base50.clip_difference"
    assert (row[name], row[f"{name}.low"], row[f"{name}.high"]) == (0.1, 0.0, 0.2)
    assert (row["minutes"], row["cost"]) == pytest.approx((1.5, 0.15))
    assert headline_of(report) == {"coreml.unet.size_mib": [4.0, None, None], name: [0.1, 0.0, 0.2]}
