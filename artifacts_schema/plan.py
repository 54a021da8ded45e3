"""What `start` decides before anything expensive runs."""

from typing import ClassVar, Literal

from artifacts_schema.base import Record
from artifacts_schema.data import PreparedDataRef, RawData
from artifacts_schema.references import FolderRef, ObjectRef

InputName = Literal[
    "base", "data", "velocity_warm_start", "robust_warm_start", "signal_clip", "measure_clip", "inception",
    "protocols",
]  # fmt: skip
"""What a stage may read of a plan."""


class RunPlan(Record):
    """The checked inputs of a run: base folder in the store, and prepared data.

    `raw_data` is what the data were prepared from; it stands here and not in `data`, whose identity every later stage
    is keyed by and which is the same when other files give the same pictures. `estimates` holds what one latent costs
    on the machine of `start` (see steps.latency.unit_costs).
    """

    schema_name: ClassVar[str] = "snapfusion.run_plan"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "estimates"})

    base: FolderRef
    base_identity: str
    prediction_type: str
    data: PreparedDataRef
    raw_data: RawData = RawData()
    velocity_warm_start: FolderRef | None = None
    robust_warm_start: FolderRef | None = None
    signal_clip: FolderRef | None = None
    measure_clip: FolderRef | None = None
    inception: ObjectRef | None = None
    protocols: FolderRef | None = (
        None  # frozen ones, <split>.json and, of a user's own pictures, <name>.safetensors
    )
    estimates: dict[str, float] = {}

    def identity_of(self, name: InputName) -> str:
        """Identity of one of the run's inputs; empty for one that there is not."""
        ref: FolderRef | PreparedDataRef | ObjectRef | None = getattr(self, name)
        if isinstance(ref, ObjectRef):
            return ref.sha256
        return ref.identity() if ref is not None else ""
