"""What a rehearsal tells: measured speeds times what is to be done, start-up counted once."""

from typing import Any

import pytest

from artifacts_schema.base import Measurement
from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.rehearsal import rehearsal_of
from artifacts_schema.report import StageSummary
from steps.latency.estimates import stage_estimates
from steps.latency.rehearsed import Told, format_told, tell
from tests.flows.keys import example

COSTS = {
    "unet_forward_s": 0.01, "decoder_forward_s": 0.02, "unet_activation_bytes": 1e6, "decoder_activation_bytes": 4e6,
    "unet_parameters": 1e6, "decoder_parameters": 1e5, "units": 20.0,
}  # fmt: skip
TRAINING = {"iterations": 5000, "batch_size": 32, "accumulation": 2}
REAL = parse_config(
    {"robust_training": {"training": TRAINING}, "evaluation": {"pictures": 1000}, "data": {"limit": 50_000}}
)
SHORT = rehearsal_of(REAL)


def estimated(config: SnapFusionConfig, stage: str) -> float:
    return next(item.seconds for item in stage_estimates(config, COSTS) if item.stage == stage)


def told(stage: str, wall_time_s: float, images_per_s: float | None = None, **evaluations: Any) -> float:
    speed = Measurement.of([images_per_s], "images/s") if images_per_s else None
    row = StageSummary(
        stage=stage, identity="", wall_time_s=wall_time_s, peak_memory_bytes=1 << 30, images_per_s=speed
    )
    (found,) = tell(REAL, SHORT, COSTS, [row], evaluations)
    return found.real_s


def test_a_training_goes_on_at_the_measured_speed_and_starts_once() -> None:
    """On a machine of half the estimated speed, with a minute of start-up."""
    images, trained = 10 * 64, 10 * 64 * 3 * 0.01
    short = estimated(SHORT, "robust_training")
    found = told("robust_training", 60 + 2 * short, images / (2 * trained))
    assert found == pytest.approx(60 + 2 * estimated(REAL, "robust_training"))
    assert found > 2 * 5000 * 64 * 3 * 0.01


def test_an_evaluation_goes_on_picture_by_picture() -> None:
    record = example("evaluation_v1").model_copy(update={"seconds_per_picture": Measurement.of([0.5], "s")})
    assert told("evaluation base_50", 20.0, base_50=record) == pytest.approx(20.0 + (1000 - 8) * 0.5)


def test_start_goes_on_for_as_many_pictures_as_are_asked_for() -> None:
    assert told("start", 10.0) == pytest.approx(500.0)
    assert told("bundle_drawing", 10.0) == 10.0


def test_the_table_ends_with_sum_and_cost() -> None:
    rows = [Told("start", 60.0, 3600.0, 1 << 30), Told("student_8", 60.0, 7200.0, 3 << 30)]
    text = format_told(rows, price_per_hour=2.0)
    assert "3.00 GiB" in text and text.splitlines()[-1].endswith("3.0 h, cost 6.00")
