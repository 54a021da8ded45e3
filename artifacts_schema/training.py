"""Record of one training: what was trained, on what, how it went, and the reference to its weights."""

from typing import ClassVar

from artifacts_schema.base import Measurement, Record
from artifacts_schema.references import WeightsRef


class TrainingRecord(Record):
    """Left by every stage that trains.

    `curve` holds one row per logging interval: `iteration` and the mean of each named loss term since the last row.
    It is volatile, since it depends on the interval and the weights do not.
    `warm_start` is the identity of the weights the training started from when they are not those of a parent stage.
    """

    schema_name: ClassVar[str] = "snapfusion.training"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "images_per_s", "curve"})

    weights: WeightsRef
    iterations: int
    batch_size: int
    prediction_type: str = "v_prediction"
    grid_steps: int | None = None
    curve: tuple[dict[str, float], ...] = ()
    metrics: dict[str, float] = {}
    skipped: bool = False
    warm_start: str | None = None
    images_per_s: Measurement | None = None
