"""Runs as Metaflow and the store know them: resolved from references, and as rows of a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import StoreConfig
from flows.environment import WORK_ROOT
from steps.comparison.frame import row_of
from steps.comparison.references import finished_runs, report_of, resolve_runs
from steps.store import Store, open_store

if TYPE_CHECKING:
    from pandas import DataFrame

    from steps.comparison.page import Comparison

FLOW = "SnapFusionFlow"


def runs_frame(store: StoreConfig | None = None) -> "DataFrame":
    """Every finished run of a store, newest first: one row a run, as `steps.comparison.frame.row_of` says, and `tags`.

    `store` is the runs' `[store]` section; the default one without it. Tags are Metaflow's, empty for a run of another
    machine without a metadata service. Raises StoreError.
    """
    import pandas as pd

    opened, tags = open_store(store or StoreConfig(), WORK_ROOT), _tags()
    rows = [row_of(report_of(opened, run_id)) for run_id in finished_runs(opened)]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)) or ["run"])
    frame.insert(1, "tags", [tags.get(run_id, ()) for run_id in frame["run"]])
    return frame


def named_reports(store: Store, references: Sequence[str]) -> list[RunReport]:
    """The reports that run ids, names, tags, `latest`, `previous` and `champion` mean. Raises SnapFusionError."""
    return resolve_runs(store, references, tagged=_tagged, explain=_explain)


def named_report(store: Store, reference: str | None) -> RunReport:
    """The report that one of those means, the newest without one. Raises SnapFusionError."""
    (report,) = named_reports(store, [reference or "latest"])
    return report


def _client() -> Any:
    """Metaflow's client, looking where the flows of this installation run."""
    import metaflow

    if metaflow.get_metadata().startswith("local@"):
        # Else Metaflow raises ValueError where nothing ever ran, as on a machine that only looks at a store on S3.
        (WORK_ROOT / ".metaflow").mkdir(parents=True, exist_ok=True)
        metaflow.metadata(f"local@{WORK_ROOT}")
    metaflow.namespace(None)
    return metaflow


def _tags() -> dict[str, tuple[str, ...]]:
    return {run.id: tuple(sorted(run.user_tags)) for run in _runs()}


def _tagged(tag: str) -> list[str]:
    return [run.id for run in _runs(tag)]


def _runs(*tags: str) -> list[Any]:
    """Newest first; none where this flow never ran."""
    from metaflow.exception import MetaflowNotFound

    client = _client()
    try:
        return list(client.Flow(FLOW).runs(*tags))
    except MetaflowNotFound:
        return []


def _explain(reference: str) -> str | None:
    """Why a reference that Metaflow knows means no finished run of this flow; None for one that it does not know."""
    from metaflow.exception import MetaflowNotFound

    client = _client()
    if not reference or "/" in reference:
        return None
    for flow in sorted((flow.id for flow in client.Metaflow()), key=lambda name: name != FLOW):
        try:
            run = client.Run(f"{flow}/{reference}")
        except MetaflowNotFound:
            continue
        if flow != FLOW:
            return f"run {reference} is one of {flow}; only runs of {FLOW} are compared"
        if not run.finished:
            return f"run {reference} is still running, or was killed: it has no report yet"
        if not run.successful:
            return f"run {reference} failed; `resume --origin-run-id {reference}` goes on with it"
        return f"run {reference} has finished, but its report is not in this store; name the store of the run"
    return None


def compared(store: Store, references: Sequence[str]) -> "Comparison":
    """The comparison of the runs that references mean, with the first. Raises SnapFusionError."""
    from steps.comparison.page import compare_runs
    from steps.comparison.runs import load_run

    wanted = [reference for reference in references if reference.strip()]
    return compare_runs(store, [load_run(store, report) for report in named_reports(store, wanted)])
