"""Whether a finished run becomes champion, said everywhere: terminal, card, tags, webhook. docs/operate.md"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaflow import Flow, Run, current, namespace
from metaflow.exception import MetaflowException

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.operating import PromotionConfig
from artifacts_schema.promotion import PromotionDecision
from flows.notify import notify_decision
from flows.runtime import read_config, store_of, unpack
from steps.cache.leases import in_use
from steps.files.errors import PromotionError
from steps.registry.champion import (
    champion_report,
    current_champion,
    promote,
    usable_report,
)
from steps.registry.gate import decide, is_unchanged
from steps.report.content import Block, Heading, Text
from steps.store import Store

TAG = "champion"
FLOW = "SnapFusionFlow"


def at_end(flow: Any) -> dict[str, Any]:
    """What the flow's last step does: promote the run or keep the champion, where that is configured, and say so.

    Returns the small artifact that the UI's run table can show.
    """
    from flows.cards import render

    config = read_config(flow)
    # The report's folder has the run's id: that of a resumed run is the one that its report was stored under.
    run = Path(unpack(flow.report_record).folder).name
    decision = conclude(store_of(config), config, run)
    if decision is None:
        return {"outcome": "off"}
    print("\n".join(lines(decision)))
    render(current.card["promotion"], page(decision))
    return {"outcome": decision.outcome, "champion": decision.champion, "summary": decision.summary[:1000]}


def consider(store: Store, config: PromotionConfig, run: str) -> PromotionDecision:
    """Hold a finished run against the champion, and promote it if it passes. Leaves the decision in the store.

    Raises PromotionError when the run's bundle or the champion's is gone, or when it is the champion already.
    """
    with in_use(store, f"promotion of run {run}"):
        report = usable_report(store, run)
        champion_run = current_champion(store)
        if champion_run == run:
            raise PromotionError(f"run {run} is the champion already")
        champion = champion_report(store)
        quality = None
        if champion is not None and not is_unchanged(report, champion):
            from steps.report.against_champion import compare_with_champion  # torch

            quality = compare_with_champion(store, champion, report)
        decision = decide(config, report, champion, run=run, champion_run=champion_run, quality=quality)
        if decision.outcome == "promoted":
            decision = _promoted(store, decision)
        store.put_document(f"registry/decisions/{run}", decision.to_json())
    return decision


def _promoted(store: Store, decision: PromotionDecision) -> PromotionDecision:
    """Swap the champion; the decision is "kept" when somebody else was faster."""
    try:
        promote(store, decision.run, over=decision.champion, by=user(), reason="passed the gate")
    except PromotionError as error:
        return decision.model_copy(update={"outcome": "kept", "note": str(error)})
    return decision


def conclude(store: Store, config: SnapFusionConfig, run: str) -> PromotionDecision | None:
    """The end of a run: consider it where that is configured, move the tag, tell the webhook. None where it is not.

    A champion that cannot be used is no reason to lose a finished run: it is said, and stays.
    """
    if not config.promotion.enabled:
        return None
    try:
        decision = consider(store, config.promotion, run)
    except PromotionError as error:
        decision = PromotionDecision(
            run=run, champion=current_champion(store), outcome="kept", note=str(error)
        )
    if decision.outcome == "promoted":
        print(move_tag(store))
    notify_decision(config.notify, decision, name=config.run.name)
    return decision


def move_tag(store: Store) -> str:
    """Put Metaflow's tag `champion` on the champion's run and on no other; returns what happened, in words.

    The store says who the champion is; the tag is for people, and Metaflow may know the run on another machine only.
    """
    champion = current_champion(store)
    try:
        namespace(None)
        for other in Flow(FLOW).runs(TAG):
            if other.id != champion:
                other.remove_tag(TAG)
        Run(f"{FLOW}/{champion}").add_tag(TAG)
    except MetaflowException as error:
        return f"the tag '{TAG}' was not moved: Metaflow's Client knows no run {champion} here ({str(error).strip()})"
    return f"the tag '{TAG}' is on run {champion}"


def user() -> str:
    """Who promotes, as Metaflow names people."""
    return os.environ.get("METAFLOW_USER", "")


def lines(decision: PromotionDecision) -> Sequence[str]:
    """What a terminal shows."""
    marks = {True: "ok ", False: "NO ", None: "-  "}
    rows = [
        f"  {marks[check.passed]} {check.name:18s} {check.found} (wanted: {check.wanted})"
        for check in decision.checks
    ]
    return [decision.summary, *rows]


def page(decision: PromotionDecision) -> list[Block]:
    """What the card shows: text alone, so that it stays small (flows/stage_card.py)."""
    words = {True: "passed", False: "failed", None: "not asked"}
    found = (
        Text(f"{check.name} · {words[check.passed]} · {check.found} · wanted: {check.wanted}")
        for check in decision.checks
    )
    return [Heading("Champion"), Text(decision.summary), *found]
