"""Scoring changes: paired, in batches, more of them for what is undecided."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.evolution.actions import Budget, apply
from steps.evolution.evidence import Estimate, estimate, pooled
from steps.evolution.probe import Probe
from steps.evolution.rule import Change
from steps.evolution.scoring import Evidence, earlier_evidence, score_changes
from steps.stages import latency_profile
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet
from tests.factories import Shown, context, tiny_base
from tests.steps.evolution.factories import BrightnessScorer
from tests.steps.evolution.test_probe import probe_of

PAIR, COPY = "remove down.3.resnets.0+up.0.resnets.1", "copy up.1.attentions.0"
KEYS = ("remove mid.resnets.0", PAIR, COPY)


@pytest.fixture(scope="module")
def budget() -> Budget:
    base = tiny_base()
    return Budget.of(latency_profile.count(base, LatencyProfileConfig(backend="macs")), base.unet.config, 1.0)


@pytest.fixture(scope="module")
def unet() -> EvolvedUNet:
    torch.manual_seed(0)
    return EvolvedUNet.from_unet(tiny_base().unet)


def changes_of(budget: Budget, unet: EvolvedUNet) -> list[Change]:
    return [change for change in budget.changes(unet.spec) if change.key in KEYS]


def nothing(_: Mapping[str, Estimate]) -> set[str]:
    return set()


def drawn(unet: EvolvedUNet, change: Change, budget: Budget, probe: Probe, number: int) -> list[float]:
    """Scores of the architecture after the change, really built."""
    return probe.scores(build(apply(unet.spec, [change], budget)[-1], unet), number)


def test_a_change_loses_what_the_built_architecture_loses(
    tmp_path: Path, budget: Budget, unet: EvolvedUNet
) -> None:
    changes = changes_of(budget, unet)
    assert {change.key for change in changes} == set(KEYS)
    probe = probe_of(BrightnessScorer())
    found = score_changes(
        unet, changes, probe, {}, undecided=nothing, context=context(tmp_path), folder=tmp_path / "round_0"
    )
    assert not unet.skipped
    before = probe.scores(unet, 0)
    assert found.baseline == pytest.approx(sum(before) / 3)
    for change in changes:
        after = drawn(unet, change, budget, probe, 0)
        expected = estimate([one - other for one, other in zip(before, after, strict=True)])
        assert expected.mean != 0.0 and found.own[change.key].n == 3
        assert found.own[change.key].mean == pytest.approx(expected.mean)
        assert found.own[change.key].error == pytest.approx(expected.error)
    assert found.pooled == found.own and found.drift == 0.0


def test_only_the_undecided_get_more_captions_and_pairs_stay_pairs(
    tmp_path: Path, budget: Budget, unet: EvolvedUNet
) -> None:
    changes, scorer = changes_of(budget, unet), BrightnessScorer()
    answers = iter([{PAIR, COPY}, {COPY}])
    asked = []

    def undecided(known: Mapping[str, Estimate]) -> set[str]:
        asked.append(dict(known))
        return next(answers, set())

    probe = probe_of(scorer)
    found = score_changes(
        unet, changes, probe, {}, undecided=undecided, context=context(tmp_path), folder=tmp_path / "round_0"
    )
    assert {key: item.n for key, item in found.own.items()} == {KEYS[0]: 3, PAIR: 6, COPY: 7}
    assert scorer.pictures == 3 * 4 + 3 * 3 + 1 * 2
    assert asked[-1] == found.pooled and len(asked) == 3
    copy = next(change for change in changes if change.key == COPY)
    differences = [
        one - other
        for number in range(3)
        for one, other in zip(
            probe.scores(unet, number), drawn(unet, copy, budget, probe, number), strict=True
        )
    ]
    assert found.own[COPY].mean == pytest.approx(sum(differences) / 7)


def test_finished_probes_are_not_made_again(tmp_path: Path, budget: Budget, unet: EvolvedUNet) -> None:
    changes, scorer = changes_of(budget, unet), BrightnessScorer()
    shown = Shown()
    place = replace(context(tmp_path), progress=shown)
    given = {"undecided": nothing, "context": place, "folder": tmp_path / "r"}
    first = [score_changes(unet, changes, probe_of(scorer), {}, **given)]
    made = scorer.pictures
    again = score_changes(unet, changes, probe_of(scorer), {}, **given)
    assert [again] == first and scorer.pictures == made == 3 * 4
    batches = probe_of(scorer).batches
    assert shown.totals == [4 * batches] * 2 and shown.done == [1, 2, 3, 4] * 2  # decided after a batch


def test_evidence_of_the_round_before_is_pooled_and_on_record(budget: Budget, unet: EvolvedUNet) -> None:
    changes = changes_of(budget, unet)
    earlier = {change.key: Estimate(0.5, 0.1, 8) for change in changes[:2]}
    losses = {change.key: [0.1, 0.2, 0.4] for change in changes}
    found = Evidence.of([0.5, 0.7], losses, earlier)
    assert found.baseline == pytest.approx(0.6) and found.drift > 0.0
    assert found.pooled == pooled(earlier, found.own, found.drift**2)
    assert found.own[changes[0].key].mean < found.pooled[changes[0].key].mean < 0.5
    scores = found.scores(changes)
    assert earlier_evidence(scores) == found.pooled
    assert [score.latency for score in scores] == [change.saves for change in changes]
    assert [score.difference for score in scores] == [found.own[change.key].mean for change in changes]
