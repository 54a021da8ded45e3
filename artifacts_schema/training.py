"""Record of one training: what was trained, on what, how it went, and the reference to its weights."""

from typing import ClassVar

from artifacts_schema.base import Frozen, Measurement, Record
from artifacts_schema.references import WeightsRef


class Candidate(Frozen):
    """A state of a training after so many iterations (0: its start) and its held-out number."""

    iteration: int
    held_out: float


class Selection(Frozen):
    """Which state was handed on: the best of `candidates`, measured by `measure` on `samples`. Lower is better."""

    measure: str
    samples: int
    candidates: tuple[Candidate, ...]
    chosen: int

    def at(self, iteration: int) -> float:
        """The held-out number after so many iterations. Raises KeyError where none was taken."""
        return {candidate.iteration: candidate.held_out for candidate in self.candidates}[iteration]


class TrainingRecord(Record):
    """Left by every stage that trains.

    `curve` holds one row per logging interval: `iteration` and the mean of each named loss term since the last row.
    It is volatile, since it depends on the interval and the weights do not.
    `selection` says which state of the training `weights` are; None where nothing was trained.
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
    selection: Selection | None = None
    skipped: bool = False
    warm_start: str | None = None
    images_per_s: Measurement | None = None
