"""A variant is drawn at the scale chosen for it on validation; protocols hold nothing of training data or scales."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.distillation_configs import StepDistillationConfig
from artifacts_schema.result_configs import EvaluationConfig
from steps.evaluation import bench as bench_module
from steps.models.stored import save_model
from steps.stages import evaluation, guidance_selection, real_pictures
from tests.factories import stage_context, two_level_base
from tests.steps.stages.test_real_pictures import Pictures, brightness, stand_in

STEPS = StepDistillationConfig(intermediate_steps=4, final_steps=2)


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "load_features", lambda name, inception, device: brightness)


def settings(**changes: Any) -> SnapFusionConfig:
    given: dict[str, Any] = {"pictures": 8, "validation_pictures": 8} | changes
    return SnapFusionConfig(evaluation=EvaluationConfig(**given), step_distillation=STEPS)


class Run:
    """The stages that draw, of one variant of an untrained base."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.settings = settings(**changes)
        self.context = replace(stage_context(folder, "evaluation"), label="base_8")
        self.inputs = stand_in(Pictures(), base=two_level_base(folder / "base"))
        self.earlier: dict[str, Any] = {"unet": None, "decoder": None}
        self.inputs.earlier = lambda name: self.earlier[name]
        self.earlier["real_pictures"] = real_pictures.run(self.inputs, self.settings, self.context)

    def guidance(self) -> Any:
        self.earlier["guidance"] = guidance_selection.run(self.inputs, self.settings, self.context)
        return self.earlier["guidance"]

    def evaluation(self) -> Any:
        return evaluation.run(self.inputs, self.settings, self.context)


def of_scale(monkeypatch: pytest.MonkeyPatch, grey: dict[float, int]) -> list[tuple[str, float, int]]:
    """Pictures whose grey depends on the scale alone; returns what was drawn."""
    drawn: list[tuple[str, float, int]] = []

    def draw(self: Any, unet: Any, decoder: Any, count: int, scale: float, **_: Any) -> Tensor:
        drawn.append((self.split, scale, count))
        noise = torch.arange(count) % 3
        return (grey[scale] + noise).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16)

    monkeypatch.setattr(bench_module.Bench, "draw", draw)
    return drawn


def test_the_nearest_scale_is_chosen_on_validation_and_drawn_on_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, guidance_scales=(1.0, 3.0, 5.0))
    drawn = of_scale(monkeypatch, {1.0: 10, 3.0: 108, 5.0: 250})  # validation's real pictures have 100 to 115
    record = run.guidance()
    assert record.guidance_scale == 3.0
    assert [point.guidance_scale for point in record.points] == [1.0, 3.0, 5.0]
    assert run.evaluation().point.guidance_scale == 3.0
    assert drawn == [("validation", 1.0, 8), ("validation", 3.0, 8), ("validation", 5.0, 8), ("test", 3.0, 8)]


def test_of_scales_alike_in_distance_the_better_clip_score_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, guidance_scales=(1.0, 3.0))
    of_scale(monkeypatch, {1.0: 106, 3.0: 107})  # the evaluator likes light pictures
    assert run.guidance().guidance_scale == 3.0


def test_without_a_choice_nothing_is_drawn_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, guidance_scales=(4.0,))
    drawn = of_scale(monkeypatch, {4.0: 50})
    assert (run.guidance().guidance_scale, run.guidance().points, drawn) == (4.0, (), [])


def test_protocols_hold_neither_training_data_nor_scales(tmp_path: Path) -> None:
    protocols = []
    for name, scales in (("a", (3.0,)), ("b", (1.0, 3.0))):
        run = Run(tmp_path / name, guidance_scales=scales)
        run.inputs.identity = lambda known, run=name: known if known != "data" else run
        run.guidance()
        protocols.append(run.evaluation().protocol)
    assert protocols[0] == protocols[1]
    assert protocols[0] != Run(tmp_path / "c", pictures=9).earlier and protocols[0]["pictures"] == 8


def test_seeds_of_a_caption_are_told_apart(tmp_path: Path) -> None:
    features = torch.tensor([[0.0], [1.0], [10.0], [13.0]])
    expected = ((1 + 3) / 2) / ((10 + 13 + 9 + 12) / 4)
    assert bench_module.seed_diversity(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(expected)
    assert bench_module.seed_diversity(features, torch.arange(4)) is None


def test_every_variant_sees_the_same_noise_and_captions(tmp_path: Path) -> None:
    run = Run(tmp_path, pictures=20)
    bench = bench_module.Bench(run.inputs, "test", "efficientnet_lite0", run.context)
    assert sorted(bench.chosen(8).tolist()) == list(range(8))  # all captions in turn
    unet, decoder, prediction = guidance_selection.models_of(run.inputs, run.context)
    given: dict[str, Any] = {"steps": 2, "prediction_type": prediction, "sampler": "ddim"}
    few, many = (bench.draw(unet, decoder, count, 3.0, **given) for count in (4, 6))
    assert torch.equal(few, many[:4])


def test_a_trained_unet_predicts_v_and_the_base_what_it_predicts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    unet, decoder, prediction = guidance_selection.models_of(run.inputs, run.context)
    assert (unet, decoder, prediction) == (run.inputs.base.unet, run.inputs.base.vae, "epsilon")
    schema = "diffusers.UNet2DConditionModel"
    run.earlier["unet"] = save_model(run.context.store, run.inputs.base.unet, schema=schema)
    unet, decoder, prediction = guidance_selection.models_of(run.inputs, run.context)
    assert unet is not run.inputs.base.unet and decoder is run.inputs.base.vae
    assert prediction == "v_prediction"


def test_the_environment_is_checked_on_the_features_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []
    monkeypatch.setattr(
        bench_module.Bench, "check_environment", lambda self, found: checked.append((self.split, found))
    )
    run = Run(tmp_path, guidance_scales=(1.0, 3.0))
    of_scale(monkeypatch, {1.0: 10, 3.0: 108})
    run.guidance()
    run.evaluation()
    splits = run.earlier["real_pictures"].splits
    assert [split for split, _ in checked] == [*splits, "validation", "test"]
    for split, found in checked:
        expected, _ = real_pictures.load_reference(run.context.store, splits[split])
        assert np.array_equal(found, expected)


def test_without_a_choice_no_instrument_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, guidance_scales=(4.0,))

    def forbidden(*_: Any) -> None:
        raise AssertionError("features were loaded for nothing")

    monkeypatch.setattr(bench_module, "load_features", forbidden)
    del run.inputs.signal_clip
    assert run.guidance().guidance_scale == 4.0


def test_the_bundle_is_measured_from_the_same_noise_at_the_chosen_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps.export import bundle_run

    run = Run(tmp_path, guidance_scales=(4.0,))
    run.guidance()
    asked: list[tuple[str, Tensor, float]] = []

    class Shipped:
        scale = 0.0

        @classmethod
        def open(cls, folder: Path) -> "Shipped":
            return cls()

        def guided(self, scale: float) -> "Shipped":
            self.scale = scale
            return self

        def draw(self, caption: str, noise: Tensor) -> Any:
            asked.append((caption, noise, self.scale))
            grey = torch.full((1, 3, 16, 16), 20 + len(asked), dtype=torch.uint8)
            return bundle_run.Picture(noise, grey.float() / 127.5 - 1)

    monkeypatch.setattr(bundle_run, "Bundle", Shipped)
    context = replace(run.context, label="student_8_compressed")
    record = evaluation.run_bundle(tmp_path, run.inputs, run.settings, context)
    bench = bench_module.Bench(run.inputs, "test", "efficientnet_lite0", run.context)
    assert [caption for caption, _, _ in asked] == bench.drawn(8) == list(record.captions)
    assert torch.equal(torch.cat([noise for _, noise, _ in asked]), bench.noise(8))
    assert {scale for _, _, scale in asked} == {4.0}
    assert (record.variant, record.pictures) == ("student_8_compressed", 8)
    assert record.protocol == run.evaluation().protocol
