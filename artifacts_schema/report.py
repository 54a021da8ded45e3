"""The record of a whole run: what was made, from what, how long it took."""

from typing import Any, ClassVar

from artifacts_schema.base import Frozen, Measurement, Record
from artifacts_schema.evaluation import VariantComparison
from artifacts_schema.references import ObjectRef


class StageSummary(Frozen):
    """One row of the report's stage table."""

    stage: str
    identity: str
    wall_time_s: float
    peak_memory_bytes: int
    iterations: int = 0
    cached: bool = False
    images_per_s: Measurement | None = None


class RunReport(Record):
    """Everything that identifies a run's result; `report.json` is this record.

    `inputs` names every input hash, so that a bundle can be traced to data, code and configuration.
    """

    schema_name: ClassVar[str] = "snapfusion.report"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "stages", "folder"})

    name: str
    smoke: bool
    labels: tuple[str, ...] = ()
    inputs: dict[str, str]
    headline: dict[str, float]
    evaluations: tuple[dict[str, Any], ...] = ()
    comparisons: tuple[VariantComparison, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    grids: dict[str, ObjectRef] = {}
    bundle: str = ""
    folder: str = ""
