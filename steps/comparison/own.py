"""What a run's own report says of it beside the champion, the previous run and those that it names."""

from collections.abc import Sequence

from steps.comparison.page import MOST_RUNS, Comparison, compare_runs, comparison_page
from steps.comparison.references import finished_runs, report_of
from steps.comparison.runs import Run, check_alike, load_run, subject_of
from steps.files.errors import SnapFusionError
from steps.registry.champion import current_champion
from steps.report.content import Block, Heading, Text
from steps.store.base import Store

_LOOK_BACK = 10  # runs among which a previous one that was measured alike is looked for


def beside_others(store: Store, this: Run, named: Sequence[str]) -> tuple[list[Block], str]:
    """The verdicts and all of the comparison of a run that has just ended, and the verdicts in words.

    Beside it stand the champion, the newest other run that was measured alike, and `named`, as far as they can be
    compared: what cannot is said. A run is not lost because another one's records are.
    """
    others: dict[str, Run] = {}
    notes: list[str] = []
    champion = current_champion(store)
    wanted = [*([("the champion, ", champion)] if champion else []), *(("", run) for run in named)]
    for what, run_id in wanted:
        if run_id != this.id and run_id not in others:
            other = _comparable(store, this, run_id)
            if isinstance(other, Run):
                others[run_id] = other
            else:
                notes.append(f"Not compared with {what}run {run_id}: {other}")
    previous = _previous(store, this)
    if previous and previous.id not in others:
        others[previous.id] = previous
    runs = [*list(others.values())[: MOST_RUNS - 1], this]
    heading = Heading("Beside the champion and earlier runs")
    if len(runs) == 1:
        alone = "There is no earlier run that was measured alike." if not notes else ""
        return [heading, *(Text(text) for text in [alone, *notes] if text)], alone or " ".join(notes)
    try:
        found = compare_runs(store, runs, [(place, len(runs) - 1) for place in range(len(runs) - 1)])
        page = comparison_page(store, found)
    except SnapFusionError as error:  # such as pictures of another run that are damaged
        notes.append(f"Not compared with {', '.join(run.id for run in runs[:-1])}: {error}")
        return [heading, *map(Text, notes)], " ".join(notes)
    return [heading, *map(Text, notes), *page], verdict_words(found)


def verdict_words(found: Comparison) -> str:
    """The sentences of all pairs."""
    return " ".join(pair.sentence for pair in found.pairs)


def _previous(store: Store, this: Run) -> Run | None:
    """The newest other run that can be compared."""
    earlier = [run_id for run_id in finished_runs(store) if run_id != this.id]
    for run_id in earlier[:_LOOK_BACK]:
        found = _comparable(store, this, run_id)
        if isinstance(found, Run):
            return found
    return None


def _comparable(store: Store, this: Run, run_id: str) -> Run | str:
    """A run, or why it cannot be compared with this one."""
    try:
        found = load_run(store, report_of(store, run_id))
        subject = subject_of([found, this])
        check_alike([found, this], subject)
        pictures = found.evaluations[subject].point.images
        if not store.has(pictures.sha256, pictures.bytes):
            return f"its pictures are no longer in the store {store.root}"
    except (SnapFusionError, ValueError) as error:
        return str(error)
    return found
