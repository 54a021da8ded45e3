"""What `start` decides before anything expensive runs."""

from typing import ClassVar

from artifacts_schema.base import Record
from artifacts_schema.data import PreparedDataRef
from artifacts_schema.references import FolderRef, ObjectRef


class RunPlan(Record):
    """The checked inputs of a run: base folder in the store, prepared data, and where results will be put.

    `estimates` holds what one latent costs on the machine of `start` (see steps.unit_costs).
    """

    schema_name: ClassVar[str] = "snapfusion.run_plan"
    schema_version: ClassVar[int] = 2
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "store_root", "output", "estimates"})

    base: FolderRef
    base_identity: str
    prediction_type: str
    data: PreparedDataRef
    velocity_warm_start: FolderRef | None = None
    robust_warm_start: FolderRef | None = None
    signal_clip: FolderRef | None = None
    measure_clip: FolderRef | None = None
    inception: ObjectRef | None = None
    store_root: str = ""
    output: str = ""
    estimates: dict[str, float] = {}
