"""The record of a whole run: what was made, from what, how long it took."""

from typing import Any, ClassVar

from artifacts_schema.base import Frozen, Interval, Measurement, Record
from artifacts_schema.evaluation import VariantComparison
from artifacts_schema.licences import Licence
from artifacts_schema.references import FolderRef, ObjectRef


class CodeVersion(Frozen):
    """Which code ran: the package's version and, in a git checkout, the commit.

    `dirty` says whether the code differed from the commit; None outside a checkout, where `commit` is empty.
    """

    version: str
    commit: str = ""
    dirty: bool | None = None

    @property
    def text(self) -> str:
        """One word, such as 0.1.0+g4b11d54 (the commit in full), with `.dirty` at the end if it was."""
        return self.version + (f"+g{self.commit}" if self.commit else "") + (".dirty" if self.dirty else "")


class StageSummary(Frozen):
    """One row of the report's stage table.

    `key` is the stage's cache key, `version` its version in there. `cached` says whether the run found the record in the
    cache. `made_by` is the run that made the record, `code` the code it was made with (as `CodeVersion.text`), `source`
    the hash of the stage's own part of it. None, "" or 0 where it is not known.
    """

    stage: str
    identity: str
    wall_time_s: float
    peak_memory_bytes: int
    iterations: int = 0
    cached: bool | None = None
    key: str = ""
    version: int = 0
    source: str = ""
    code: str = ""
    made_by: str = ""
    images_per_s: Measurement | None = None


class RunReport(Record):
    """Everything that identifies a run's result; `report.json` is this record.

    `quality` are the published numbers of the student against the base, with intervals; `licences`, by instrument, say
    whether a verdict may rest on them (`artifacts_schema.licences.licence_of`).
    `inputs` names every record by its identity, that of the bundle's manifest too, so that a bundle can be traced to
    data, code and configuration (`snapfusion trace`). `code` is None where it is not known.
    `outputs` are the files below `bundle/`, `student/` and `pictures/` that a person opens, `folder` is where the run put them;
    `snapfusion outputs` fetches them anywhere. None in reports of programs that stored no bundle.
    """

    schema_name: ClassVar[str] = "snapfusion.report"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "code", "stages", "folder", "outputs"})

    name: str
    smoke: bool
    labels: tuple[str, ...] = ()
    inputs: dict[str, str]
    code: CodeVersion | None = None
    headline: dict[str, float]
    quality: dict[str, Interval] = {}  # those of the headline that have a 95 % interval
    licences: dict[str, Licence] = {}
    evaluations: tuple[dict[str, Any], ...] = ()
    comparisons: tuple[VariantComparison, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    grids: dict[str, ObjectRef] = {}
    outputs: FolderRef | None = None
    bundle: str = ""
    folder: str = ""
