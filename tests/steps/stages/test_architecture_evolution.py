"""The stage `architecture_evolution`: it meets its budget, or says why not, and survives interruptions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts_schema.architecture import ArchitectureSpec, EvolutionRecord, EvolutionRound
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig, LatencyProfileConfig, TrainingConfig
from steps.evolution.actions import Budget
from steps.evolution.evidence import Estimate, drift_variance, pooled
from steps.evolution.rule import Change, choose
from steps.evolution.scoring import earlier_evidence
from steps.files.errors import BudgetError, Interrupted
from steps.latency.table import predict
from steps.models.stored import load_model, save_model
from steps.stages import architecture_evolution, latency_profile
from steps.training.pace import learning_rate_factor
from steps.training.randomness import epoch_indices
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet
from tests.factories import TINY_CONFIG, context, tiny_base, tiny_unet
from tests.steps.evolution.factories import BrightnessScorer, TinyData

CONFIG = ArchitectureEvolutionConfig(
    training=TrainingConfig(iterations=3, batch_size=2, log_interval=1, learning_rate=1e-3),
    latency_budget=0.75,
    rounds=2,
    actions_per_round=3,
    captions_per_batch=2,
    most_captions=4,
    probe_steps=1,
    probe_guidance_scale=1.0,
)


def _run(folder: Path, scorer: Any = None, config: ArchitectureEvolutionConfig = CONFIG) -> EvolutionRecord:
    stage = context(folder, "architecture_evolution")
    base = tiny_base()
    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    robust = save_model(stage.store, tiny_unet(), schema="diffusers.UNet2DConditionModel")
    return architecture_evolution.evolve(
        base, robust, table, TinyData(), scorer or BrightnessScorer(), config=config, context=stage
    )


@pytest.fixture(scope="module")
def scorer() -> BrightnessScorer:
    return BrightnessScorer()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, scorer: BrightnessScorer
) -> tuple[Path, EvolutionRecord]:
    folder = tmp_path_factory.mktemp("evolution")
    torch.set_num_threads(1)
    return folder, _run(folder, scorer)


def test_budget_is_met_and_the_weights_are_those_of_the_architecture(
    finished: tuple[Path, EvolutionRecord],
) -> None:
    folder, record = finished
    assert record.predicted_ratio <= 0.75
    table = latency_profile.count(tiny_base(), LatencyProfileConfig(backend="macs"))
    assert predict(table, record.architecture) == pytest.approx(record.predicted_latency)
    unet = load_model(context(folder).store, record.weights)
    assert isinstance(unet, EvolvedUNet)
    assert unet.spec.stages == record.architecture.stages
    assert sum(p.numel() for p in unet.parameters()) == record.parameters < record.base_parameters


def test_rounds_are_on_record(finished: tuple[Path, EvolutionRecord]) -> None:
    _, record = finished
    assert 1 <= len(record.rounds) <= 2
    assert all(len(item.actions) <= 3 for item in record.rounds)
    assert len(record.rounds[0].scores) == 16 + 2 + 4 + 10
    assert {score.n for item in record.rounds for score in item.scores} <= {2, 4}
    assert sum(item.trained_iterations for item in record.rounds) == 3
    assert record.rounds[0].predicted_before == pytest.approx(record.base_latency)
    assert record.rounds[-1].predicted_after == pytest.approx(record.predicted_latency)
    assert EvolutionRecord.from_json(record.to_json()) == record


def _chosen(
    item: EvolutionRound, before: ArchitectureSpec, config: ArchitectureEvolutionConfig
) -> list[Change]:
    """What the rule chooses from the evidence on record, pooled and judged by its upper bound."""
    table = latency_profile.count(tiny_base(), LatencyProfileConfig(backend="macs"))
    budget = Budget.of(table, TINY_CONFIG, config.latency_budget)
    spec = before.model_copy(update={"stages": item.layout_before})
    losses = {
        f"{score.action} {score.unit}": score.pooled + config.confidence * score.pooled_error
        for score in item.scores
    }
    return choose(
        budget.changes(spec),
        losses,
        gap=budget.gap(spec),
        actions=config.actions_per_round,
        later=(config.rounds - item.index - 1) * config.actions_per_round,
    )


def test_actions_are_the_rules_choice_from_pooled_evidence(finished: tuple[Path, EvolutionRecord]) -> None:
    _, record = finished
    for item in record.rounds:
        chosen = [(change.kind, change.target) for change in _chosen(item, record.architecture, CONFIG)]
        assert [(action.kind, action.target) for action in item.actions] == chosen
    first, second = record.rounds
    known = earlier_evidence(first.scores)
    own = {f"{s.action} {s.unit}": Estimate(s.difference, s.standard_error, s.n) for s in second.scores}
    assert second.drift == pytest.approx(drift_variance(known, own) ** 0.5)
    assert earlier_evidence(second.scores) == pooled(known, own, drift_variance(known, own))


def test_rounds_are_parts_of_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, draws and learning rate go on over the rounds; units are skipped in all of them but the last."""
    seen: list[tuple[int, list[int], float]] = []
    original = SkippingLoss.__call__

    def watched(loss: SkippingLoss, model: Any, batch: Any) -> Any:
        terms = original(loss, model, batch)
        seen.append((batch.iteration, batch.indices.tolist(), float(terms["skipped_units"])))
        return terms

    monkeypatch.setattr(SkippingLoss, "__call__", watched)
    training = CONFIG.training.model_copy(update={"iterations": 10, "warmup_iterations": 9})
    config = CONFIG.model_copy(update={"training": training, "drop_probability": 0.5})
    record = _run(tmp_path, None, config)
    assert [item.trained_iterations for item in record.rounds] == [5, 5]
    assert [iteration for iteration, _, _ in seen] == list(range(10))
    stream = epoch_indices(samples=12, start=0, count=20, seed=0).tolist()
    assert [index for _, indices, _ in seen for index in indices] == stream
    rows = [row for item in record.rounds for row in item.curve]
    assert [row["iteration"] for row in rows] == list(range(1, 11))
    short = training.model_copy(update={"warmup_iterations": 1})  # a fifth of a round
    assert [row["learning_rate"] for row in rows] == [
        1e-3 * learning_rate_factor(i, short, start=5 * (i // 5)) for i in range(10)
    ]
    skipped = [count for _, _, count in seen]
    assert min(skipped[:5]) >= 3 and skipped[5:] == [0.0] * 5  # of about thirty units, half


def test_once_the_budget_is_met_what_pays_is_swapped(tmp_path: Path) -> None:
    changes = {"latency_budget": 1.0, "confidence": 0.0, "rounds": 1, "actions_per_round": 2}
    config = CONFIG.model_copy(update=changes)
    record = _run(tmp_path, None, config)
    (first,) = record.rounds
    assert {score.action for score in first.scores} == {"remove", "copy"}
    assert first.actions and first.predicted_after <= record.base_latency
    chosen = [(change.kind, change.target) for change in _chosen(first, record.architecture, config)]
    assert [(action.kind, action.target) for action in first.actions] == chosen
    assert record.architecture.copied


def test_running_again_reuses_every_round(finished: tuple[Path, EvolutionRecord]) -> None:
    folder, record = finished
    scorer = BrightnessScorer()
    assert _run(folder, scorer).identity() == record.identity()
    assert scorer.pictures == 0


class _StoppingScorer(BrightnessScorer):
    """Is interrupted after so many pictures."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def scores(self, images: torch.Tensor, captions: Any) -> torch.Tensor:
        if self.pictures >= self.last:
            raise Interrupted("stopped by the test")
        return super().scores(images, captions)


def test_an_interrupted_evolution_ends_as_an_uninterrupted_one(
    finished: tuple[Path, EvolutionRecord], scorer: BrightnessScorer, tmp_path: Path
) -> None:
    _, record = finished
    in_one_go, total = scorer.pictures, 0
    for last in (20, scorer.pictures - 10):  # within the first round's probes, and within the last one's
        stopping = _StoppingScorer(last - total)
        with pytest.raises(Interrupted):
            _run(tmp_path, stopping)
        total += stopping.pictures
    rest = BrightnessScorer()
    again = _run(tmp_path, rest)
    assert again.identity() == record.identity()
    assert total + rest.pictures == in_one_go


def test_damaged_weights_of_a_round_are_not_used(
    finished: tuple[Path, EvolutionRecord],
    scorer: BrightnessScorer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, record = finished
    with pytest.raises(Interrupted):
        _run(tmp_path, _StoppingScorer(scorer.pictures - 10))
    (path,) = tmp_path.glob("**/round_0/unet/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-3000] ^= 0x40
    path.write_bytes(data)
    assert _run(tmp_path).identity() == record.identity()
    assert "does not have the hash it was kept with" in caplog.text


class _OtherScorer(BrightnessScorer):
    """Scores that lead to other actions."""

    def scores(self, images: torch.Tensor, captions: Any) -> torch.Tensor:
        return -super().scores(images, captions) * torch.linspace(1, 3, len(captions))


def test_checkpoints_of_another_architecture_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes are lost, and those made in their place score otherwise, as on another kind of machine."""
    training = CONFIG.training.model_copy(update={"checkpoint_interval_s": 1e-6})
    config = CONFIG.model_copy(update={"training": training, "rounds": 1, "actions_per_round": 6})

    def stop(*_: object) -> None:
        raise Interrupted("stopped by the test")

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(architecture_evolution, "save_round", stop)
        _run(tmp_path / "cut", None, config)
    assert list(tmp_path.glob("cut/**/round_0/checkpoints/**/state.json"))
    for path in tmp_path.glob("cut/**/probes.json"):
        path.unlink()
    expected = _run(tmp_path / "straight", _OtherScorer(), config)
    assert _run(tmp_path / "cut", _OtherScorer(), config).identity() == expected.identity()


def test_unreachable_budget_fails_before_any_work(tmp_path: Path) -> None:
    scorer = BrightnessScorer()
    config = CONFIG.model_copy(update={"latency_budget": 0.05})
    with pytest.raises(BudgetError, match="best reachable"):
        _run(tmp_path, scorer, config)
    assert scorer.pictures == 0


def test_removed_blocks_are_gone_from_the_saved_config(finished: tuple[Path, EvolutionRecord]) -> None:
    folder, record = finished
    unet = load_model(context(folder).store, record.weights)
    names = set(unet.state_dict())
    for block in record.architecture.removed:
        with pytest.raises(KeyError):
            unet.block(block)
    assert names < set(EvolvedUNet.from_unet(tiny_unet()).state_dict())
    assert unet.geometry()["block_out_channels"] == TINY_CONFIG["block_out_channels"]


def test_macs_decide_where_they_are_told_to_whatever_the_table_says(
    finished: tuple[Path, EvolutionRecord],
) -> None:
    _, record = finished
    base = tiny_base()
    counted = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    measured = counted.model_copy(update={"backend": "torch-cpu", "unit": "ms", "whole": 3.0})
    by_macs = CONFIG.model_copy(update={"decide_by": "macs"})
    assert architecture_evolution.deciding_table(base, measured, by_macs) == counted
    assert architecture_evolution.deciding_table(base, measured, CONFIG) is measured
    assert (record.latency_unit, record.latency_table) == ("MAC", counted.identity())
