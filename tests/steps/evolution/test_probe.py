"""Scoring units with paired probes."""

from pathlib import Path

import pytest
import torch

from artifacts_schema.config import ArchitectureEvolutionConfig, LatencyProfileConfig
from steps.evolution.actions import Budget
from steps.evolution.probe import Probe, score_units, unit_score
from steps.stages import latency_profile
from steps.unet.architecture import Unit
from steps.unet.evolved import EvolvedUNet
from tests.factories import context, tiny_base
from tests.steps.evolution.factories import BrightnessScorer, TinyData

UNIT = Unit("mid.resnets.0", "mid_resnet", ("mid.resnets.0",))


def test_value_is_the_mean_difference_over_the_latency() -> None:
    score = unit_score(UNIT, [0.4, 0.5, 0.6], [0.3, 0.3, 0.4], latency=2.0)
    assert score.difference == pytest.approx((0.1 + 0.2 + 0.2) / 3)
    # standard deviation of (0.1, 0.2, 0.2) is 0.057735, over sqrt(3)
    assert score.standard_error == pytest.approx(1 / 30)
    assert score.value == pytest.approx(score.difference / 2.0)


@pytest.mark.parametrize("without", [[0.3, 0.7], [0.5, 0.6]], ids=["noise", "better without"])
def test_a_difference_under_one_standard_error_counts_as_nothing(without: list[float]) -> None:
    score = unit_score(UNIT, [0.4, 0.5], without, latency=2.0)
    assert score.value == 0.0
    assert score.difference != 0.0


def _probe(scorer: BrightnessScorer, index: int = 0) -> Probe:
    config = ArchitectureEvolutionConfig(probe_captions=3, probe_steps=1, probe_guidance_scale=1.0)
    return Probe.of_round(tiny_base(), TinyData(), scorer, config, seed=5, index=index)


def test_probes_of_a_round_share_captions_and_noise_and_rounds_differ() -> None:
    one, same, other = _probe(BrightnessScorer()), _probe(BrightnessScorer()), _probe(BrightnessScorer(), 1)
    assert one.captions == same.captions
    assert torch.equal(one.noise, same.noise)
    assert one.captions != other.captions
    assert not torch.equal(one.noise, other.noise)


def test_every_unit_is_scored_and_finished_probes_are_reused(tmp_path: Path) -> None:
    base = tiny_base()
    unet = EvolvedUNet.from_unet(base.unet)
    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    budget = Budget.of(table, base.unet.config, 0.5)
    scorer = BrightnessScorer()
    stage = context(tmp_path)
    baseline, scores = score_units(unet, _probe(scorer), budget, stage, tmp_path / "round_0")
    assert scorer.pictures == 3 * (len(scores) + 1)
    assert not unet.skipped
    assert sum(score.difference != 0.0 for score in scores) > 20
    again = score_units(unet, _probe(scorer), budget, stage, tmp_path / "round_0")
    assert again == (baseline, scores)
    assert scorer.pictures == 3 * (len(scores) + 1)
