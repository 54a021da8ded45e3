"""The champion: one document with its whole history, changed by swaps only. docs/adr/0029-champion.md

Who promotes says which champion the new run was compared with. Of several that promote at once one wins; the others were
compared with a champion that is none any more, and are told so.
"""

import uuid
from datetime import UTC, datetime
from typing import Literal

from artifacts_schema.champion import ChampionEvent, ChampionHistory
from artifacts_schema.report import RunReport
from steps.files.errors import DamagedError, PromotionError
from steps.store.base import Store

DOCUMENT = "registry/champion"


def current_champion(store: Store) -> str | None:
    """Run id of the champion; None before the first promotion. Raises DamagedError."""
    return champion_history(store).champion


def champion_history(store: Store) -> ChampionHistory:
    """Every change of the champion, oldest first. Raises DamagedError."""
    return _parse(store.get_document(DOCUMENT))


def champion_report(store: Store) -> RunReport | None:
    """The champion's report; None before the first promotion. Raises PromotionError when it or its bundle is gone."""
    run = current_champion(store)
    return None if run is None else usable_report(store, run, "champion ")


def promote(store: Store, run: str, *, over: str | None, by: str = "", reason: str = "") -> ChampionEvent:
    """Make `run` the champion in the place of `over`, the champion that it was compared with (None: there was none).

    Raises PromotionError when `over` is not the champion any more, when `run` is it already, or when its bundle is gone.
    """
    usable_report(store, run)
    return _change(store, "promoted", run, over=over, by=by, reason=reason)


def rollback(store: Store, run: str | None = None, *, by: str = "", reason: str = "") -> ChampionEvent:
    """Make an earlier champion the champion again: `run`, or the one before the present one.

    Raises PromotionError when there is none, when `run` never was champion, when its bundle is gone, or when somebody
    else changes the champion meanwhile.
    """
    history = champion_history(store)
    target = history.before if run is None else run
    earlier = list(dict.fromkeys(event.run for event in history.events))
    if target is None:
        raise PromotionError(
            f"nothing to roll back to: the champion is {history.champion or 'none'} and no other came before it"
        )
    if target not in earlier:
        raise PromotionError(
            f"run {target} never was champion; champions so far: {', '.join(earlier) or 'none'}. "
            f"`snapfusion promote {target}` makes it one"
        )
    usable_report(store, target)
    return _change(store, "rolled_back", target, over=history.champion, by=by, reason=reason)


def usable_report(store: Store, run: str, what: str = "") -> RunReport:
    """A run's report whose bundle can be fetched. Raises PromotionError saying what is missing."""
    text = store.get_document(f"reports/{run}")
    if text is None:
        raise PromotionError(
            f"{what}run {run} has no report in the store {store.root}: it has not finished or was removed"
        )
    report = RunReport.from_json(text)
    bundle = {
        name: ref
        for name, ref in (report.outputs.files if report.outputs else {}).items()
        if name.startswith("bundle/")
    }
    gone = [name for name, ref in bundle.items() if not store.has(ref.sha256, ref.bytes)]
    if gone or not bundle:
        raise PromotionError(
            f"the bundle of {what}run {run} is gone from the store {store.root} "
            f"({len(gone)} of {len(bundle)} files{': ' + gone[0] if gone else ''}). Restore it from a backup, run the flow "
            "again (its stages come from the cache), or roll back: `snapfusion rollback RUN`"
        )
    return report


def _change(
    store: Store,
    event: Literal["promoted", "rolled_back"],
    run: str,
    *,
    over: str | None,
    by: str,
    reason: str,
) -> ChampionEvent:
    """Append an event, if `over` still is the champion."""
    text = store.get_document(DOCUMENT)
    history = _parse(text)
    if history.champion == run:
        raise PromotionError(f"run {run} is the champion already, since {history.events[-1].at}")
    made = ChampionEvent(
        id=uuid.uuid4().hex,
        event=event,
        run=run,
        replaced=over,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=by,
        reason=reason,
    )
    new = history.model_copy(update={"events": (*history.events, made)})
    if history.champion != over or not store.swap_document(DOCUMENT, text, new.to_json()):
        if made in champion_history(store).events:  # the answer to the swap was lost
            return made
        now = current_champion(store)
        command = "promote" if event == "promoted" else "rollback"
        raise PromotionError(
            f"run {run} was not made champion: it was to take the place of {f'run {over}' if over else 'none'}, but "
            f"meanwhile run {now} is the champion. Try against that one: `snapfusion {command} {run}`"
        )
    return made


def _parse(text: str | None) -> ChampionHistory:
    if text is None:
        return ChampionHistory()
    try:
        return ChampionHistory.from_json(text)
    except ValueError as error:
        raise DamagedError(f"document {DOCUMENT} is no history of champions: {error}") from error
