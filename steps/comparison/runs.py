"""One side of a comparison: a run's report and the records behind it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record
from artifacts_schema.evaluation import EvaluationRecord
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from steps.comparison.references import run_id_of
from steps.evaluation.compare import unlike
from steps.files.errors import EvaluationError
from steps.report.stored import record_of
from steps.store.base import Store

# What ships comes first: the headlines are its.
_SUBJECTS = ("student_8_small_decoder", "student_8", "student_16", "teacher_16", "base_8", "base_50")
_LEFT_OUT = ("coreml_", "bundle", "guidance_selection ", "latency_profile", "real_pictures")


@dataclass(frozen=True)
class Run:
    """A finished run with its records by stage (and label); those of stages that nothing here shows are left out.

    `title` is what it is called where it stands beside others (`titled`).
    """

    report: RunReport
    records: Mapping[str, Record]
    title: str = ""

    @property
    def id(self) -> str:
        """The run's id."""
        return run_id_of(self.report)

    @property
    def evaluations(self) -> dict[str, EvaluationRecord]:
        """By variant."""
        return {item.variant: item for item in self.records.values() if isinstance(item, EvaluationRecord)}

    @property
    def trainings(self) -> dict[str, TrainingRecord]:
        """By stage."""
        return {name: item for name, item in self.records.items() if isinstance(item, TrainingRecord)}

    @property
    def evolution(self) -> EvolutionRecord | None:
        """How the architecture was found; None where the record is gone."""
        found = self.records.get("architecture_evolution")
        return found if isinstance(found, EvolutionRecord) else None

    @property
    def size_mib(self) -> float:
        """Weights of everything that ships, MiB."""
        return sum(value for name, value in self.report.headline.items() if _is_size(name))

    @property
    def peak_memory_bytes(self) -> int:
        """The most that one stage needed."""
        return max((stage.peak_memory_bytes for stage in self.report.stages), default=0)


def load_run(store: Store, report: RunReport) -> Run:
    """A run out of the store. Raises StoreError for a record that is gone, DamagedError for a changed one."""
    wanted = [name for name in report.inputs if not name.startswith(_LEFT_OUT)]
    return Run(report, {name: record_of(store, report, name) for name in wanted})


def titled(runs: Sequence[Run]) -> list[Run]:
    """The runs with a title each: the name, and the id as well where two have one name."""
    names = Counter(run.report.name for run in runs)
    return [
        replace(run, title=run.report.name if names[run.report.name] == 1 else f"{run.report.name} {run.id}")
        for run in runs
    ]


def subject_of(runs: Sequence[Run]) -> str:
    """The variant that is compared: what ships, or the best that all runs have evaluated. Raises EvaluationError."""
    for variant in _SUBJECTS:
        if all(variant in run.evaluations for run in runs):
            return variant
    found = "; ".join(f"{run.id}: {', '.join(run.evaluations) or 'none'}" for run in runs)
    raise EvaluationError(f"the runs have evaluated no variant in common ({found})")


def check_alike(runs: Sequence[Run], subject: str) -> None:
    """Raise EvaluationError with the fields that differ when the runs' `subject` was not evaluated alike."""
    first = runs[0].evaluations[subject]
    for run in runs[1:]:
        other = run.evaluations[subject]
        if other.protocol_hash != first.protocol_hash:
            names = [f"{subject} of run {item.id}" for item in (runs[0], run)]
            raise EvaluationError(unlike(first.protocol, other.protocol, names))


def _is_size(name: str) -> bool:
    return name.startswith("coreml.") and name.endswith(".size_mib")
