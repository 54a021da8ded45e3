"""Every condition of the gate, with made-up reports."""

from typing import Any

import pytest

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import VariantComparison
from artifacts_schema.licences import Instrument, Licence
from artifacts_schema.operating import PromotionConfig
from artifacts_schema.promotion import PromotionDecision
from artifacts_schema.references import FolderRef, ObjectRef
from artifacts_schema.report import RunReport
from steps.registry.gate import decide

_PARITY = {"coreml.unet.size_mib": 3.0, "coreml.unet.psnr_exact_db": 70.0}


def report(bundle: str = "new", **changes: Any) -> RunReport:
    return RunReport(
        stage="report",
        name="nightly",
        smoke=False,
        config={"architecture_evolution": {"latency_budget": 0.5}},
        inputs={"bundle": bundle},
        headline={"unet.predicted_latency_ratio": 2.0, **_PARITY},
        outputs=FolderRef(
            files={
                "bundle/unet": ObjectRef(uri="sha256:" + "0" * 64, sha256="0" * 64, bytes=3 << 20),
                "pictures/a.png": ObjectRef(uri="sha256:" + "1" * 64, sha256="1" * 64, bytes=9 << 20),
            }
        ),
    ).model_copy(update=changes)


def licensed(**changes: Any) -> RunReport:
    names: tuple[Instrument, ...] = ("kernel_distance", "clip_score")
    found = {name: Licence(instrument=name, licensed=True, reason="a test") for name in names}
    return report(licences=found, **changes)


def quality(
    distance: tuple[float, float] = (-0.01, 0.01), clip: tuple[float, float] = (-0.01, 0.01)
) -> VariantComparison:
    """The run against the champion: 95 % intervals of distance and CLIP score, run minus champion."""
    intervals = [Interval(value=sum(ends) / 2, low=ends[0], high=ends[1], n=64) for ends in (distance, clip)]
    return VariantComparison(
        reference="champion",
        other="run",
        reference_scale=3.0,
        other_scale=3.0,
        distance_difference=intervals[0],
        distance_ratio=None,
        clip_difference=intervals[1],
        distance_verdict="",
        clip_verdict="",
    )


def gate(found: RunReport, compared: Any = None, **settings: Any) -> PromotionDecision:
    champion = None if compared is None else report("old")
    run = None if compared is None else "1"
    return decide(PromotionConfig(**settings), found, champion, run="2", champion_run=run, quality=compared)


def failed(decision: PromotionDecision) -> list[str]:
    assert decision.outcome == ("kept" if decision.failed else "promoted")
    return [check.name for check in decision.failed]


def test_the_first_run_needs_no_comparison() -> None:
    decision = gate(report())
    assert failed(decision) == []
    assert decision.summary == "promoted: run 2 is the champion, in the place of no champion"


def test_what_ships_already_is_unchanged() -> None:
    decision = decide(PromotionConfig(), report("old"), report("old"), run="2", champion_run="1")
    assert decision.outcome == "unchanged"
    assert "champion run 1 is made of, which stays" in decision.summary


@pytest.mark.parametrize(
    ("distance", "clip", "worse"),
    [
        ((-0.03, -0.01), (0.01, 0.03), []),
        ((-0.01, 0.05), (-0.05, 0.01), []),  # undecided is not worse
        ((0.001, 0.05), (-0.01, 0.01), ["kernel distance"]),
        ((-0.01, 0.01), (-0.05, -0.001), ["CLIP score"]),
    ],
)
def test_a_run_is_kept_out_when_its_whole_interval_is_worse(
    distance: tuple[float, float], clip: tuple[float, float], worse: list[str]
) -> None:
    decision = gate(licensed(), quality(distance, clip))
    assert failed(decision) == worse
    assert (decision.distance.low, decision.clip.low) == (distance[0], clip[0])  # type: ignore[union-attr]


@pytest.mark.parametrize(("margin", "holds"), [(0.02, False), (0.06, True)])
def test_a_margin_bounds_the_bad_end(margin: float, holds: bool) -> None:
    undecided = quality((-0.01, 0.05), (-0.05, 0.01))
    assert failed(gate(licensed(), undecided, distance_margin=margin)) == (
        [] if holds else ["kernel distance"]
    )
    assert failed(gate(licensed(), undecided, clip_margin=margin)) == ([] if holds else ["CLIP score"])


def test_a_run_that_cannot_be_compared_says_why() -> None:
    decision = gate(licensed(), "the captions differ")
    assert failed(decision) == ["quality"]
    assert decision.summary == "kept: run 1 stays champion, because of quality: the captions differ"


def test_without_a_licence_a_comparison_counts_only_where_that_is_configured() -> None:
    decision = gate(report(), quality())
    assert failed(decision) == ["instruments"]
    assert "kernel_distance and clip_score not licensed" in decision.summary
    assert failed(gate(report(), quality(), require_licence=False)) == []
    refused = Licence(instrument="clip_score", licensed=False, reason="too few pictures")
    half = licensed().licences | {"clip_score": refused}
    assert failed(gate(report(licences=half), quality())) == ["instruments"]


@pytest.mark.parametrize(
    ("ratio", "budget", "holds"), [(2.0, None, True), (1.9, None, False), (1.9, 0.6, True)]
)
def test_latency_keeps_the_budget(ratio: float, budget: float | None, holds: bool) -> None:
    found = report(headline={"unet.predicted_latency_ratio": ratio, **_PARITY})
    assert failed(gate(found, latency_budget=budget)) == ([] if holds else ["latency"])


def test_only_the_bundle_counts_for_its_size() -> None:
    assert failed(gate(report(), max_bundle_mib=3.0)) == []
    assert failed(gate(report(), max_bundle_mib=2.9)) == ["bundle size"]


def test_every_component_was_compared_with_torch() -> None:
    untested = report(headline={"unet.predicted_latency_ratio": 2.0, "coreml.unet.size_mib": 3.0})
    assert failed(gate(untested)) == ["parity"]
    assert failed(gate(report(headline={"unet.predicted_latency_ratio": 2.0}))) == ["parity"]
    assert failed(gate(untested, require_parity=False)) == []


@pytest.mark.parametrize("changes", [{"smoke": True}, {"labels": ("smoke: fewer than 64 pictures",)}])
def test_smoke_runs_are_no_champions(changes: dict[str, Any]) -> None:
    assert failed(gate(report(**changes))) == ["size of the run"]
    assert failed(gate(report(**changes), allow_smoke=True)) == []


def test_a_report_without_numbers_does_not_pass() -> None:
    assert failed(gate(report(headline={}, config={}))) == ["latency", "parity"]
