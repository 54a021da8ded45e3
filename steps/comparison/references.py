"""Which finished runs a person means: run ids, names, tags, `latest`, `previous`, `champion`."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from artifacts_schema.report import RunReport
from steps.files.errors import SnapFusionError
from steps.registry.champion import current_champion
from steps.store.base import Store

WORDS = ("latest", "previous", "champion")
_LOOK_BACK = 200  # reports that are read at most to find a name


def run_id_of(report: RunReport) -> str:
    """A report's run: the last part of the folder that the run left its outputs in."""
    return Path(report.folder).name


def finished_runs(store: Store) -> list[str]:
    """Ids of the runs with a report, newest first.

    By time and not by id: those of a service and those made without one count differently, and some are no numbers.
    """
    entries = sorted(store.documents("reports/"), key=lambda entry: entry.age_s)
    return [entry.name.removeprefix("reports/") for entry in entries]


def report_of(store: Store, run_id: str) -> RunReport:
    """A run's report; its `folder` ends in the run's id. Raises SnapFusionError where there is none."""
    text = store.get_document(f"reports/{run_id}")
    if text is None:
        raise SnapFusionError(f"run {run_id} has no report in the store {store.root}")
    report = RunReport.from_json(text)
    return report if run_id_of(report) == run_id else report.model_copy(update={"folder": run_id})


def resolve_runs(
    store: Store,
    references: Sequence[str],
    *,
    tagged: Callable[[str], Sequence[str]] | None = None,
    explain: Callable[[str], str | None] | None = None,
) -> list[RunReport]:
    """The reports of the runs that are meant, in the order given, each once.

    A reference is a run id, `latest` (the newest run with a report), `previous` (the one before it), `champion`, the
    name of a run (`run.name`, its newest run), or a tag. `tagged(tag)` gives the ids of the runs that carry a tag, newest
    first, and `explain(reference)` why there is no report; both ask Metaflow, which this room does not know. Raises
    SnapFusionError for a reference that means no finished run, naming the nearest that would.
    """
    runs = finished_runs(store)
    if not runs:
        raise SnapFusionError(
            f"no finished run in the store {store.root}; run the flow first, or name its --store"
        )
    found = [_run_of(store, reference.strip(), runs, tagged, explain) for reference in references]
    return [report_of(store, run_id) for run_id in dict.fromkeys(found)]


def _run_of(
    store: Store,
    reference: str,
    runs: Sequence[str],
    tagged: Callable[[str], Sequence[str]] | None,
    explain: Callable[[str], str | None] | None,
) -> str:
    if reference in runs:
        return reference
    if reference in WORDS:
        return _word(store, reference, runs)
    names = {run: report_of(store, run).name for run in runs[:_LOOK_BACK]}
    for run, name in names.items():  # the newest first
        if name == reference:
            return run
    carrying = [run for run in (tagged(reference) if tagged else ()) if run in runs]
    if carrying:
        return carrying[0]
    raise SnapFusionError(
        _unknown(store, reference, [*runs, *WORDS, *dict.fromkeys(names.values())], explain)
    )


def _word(store: Store, word: str, runs: Sequence[str]) -> str:
    if word == "latest":
        return runs[0]
    if word == "previous":
        if len(runs) < 2:
            raise SnapFusionError(f"no previous run: {runs[0]} is the only one with a report in {store.root}")
        return runs[1]
    champion = current_champion(store)
    if champion is None:
        raise SnapFusionError(
            f"the store {store.root} has no champion yet; `snapfusion promote RUN` makes a run the champion"
        )
    if champion not in runs:
        raise SnapFusionError(
            f"the champion, run {champion}, has no report any more in the store {store.root}"
        )
    return champion


def _unknown(
    store: Store,
    reference: str,
    known: Sequence[str],
    explain: Callable[[str], str | None] | None,
) -> str:
    reason = explain(reference) if explain else None
    if reason is None and "/" not in reference and store.list_documents(f"runs/{reference}/"):
        reason = f"run {reference} has stages in the store but no report: it is still running, or it failed"
    if reason is None:
        reason = f"{reference!r} is no run id, name or tag of a finished run in the store {store.root}"
    near = difflib.get_close_matches(reference, known, n=1, cutoff=0.6)
    listed = f"; did you mean {near[0]!r}?" if near else "."
    shown = [item for item in known if item not in WORDS][:6]
    return f"{reason}{listed} Known: {', '.join(shown)}, {', '.join(WORDS)}"
