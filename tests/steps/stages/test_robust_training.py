"""The stage `robust_training`."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from artifacts_schema.stage_configs import RobustTrainingConfig, TrainingConfig
from artifacts_schema.training import TrainingRecord
from steps.files.errors import BaseModelError
from steps.models.stored import load_model, save_model
from steps.stages import robust_training
from tests.factories import context, tiny_base, tiny_unet
from tests.steps.evolution.factories import TinyData

CONFIG = RobustTrainingConfig(
    training=TrainingConfig(iterations=4, batch_size=2, log_interval=2, learning_rate=1e-3),
    drop_probability=0.5,
)


def _run(folder: Path, warm_start: Path | None = None) -> TrainingRecord:
    stage = context(folder, "robust_training")
    velocity = save_model(stage.store, tiny_unet(), schema="diffusers.UNet2DConditionModel")
    return robust_training.train_robust(
        tiny_base(), velocity, TinyData(), CONFIG, stage, warm_start=warm_start
    )


def test_result_is_a_trained_plain_unet(tmp_path: Path) -> None:
    record = _run(tmp_path)
    unet = load_model(context(tmp_path).store, record.weights)
    assert isinstance(unet, UNet2DConditionModel)
    before = tiny_unet().state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert record.iterations == 4
    assert [row["iteration"] for row in record.curve] == [2.0, 4.0]
    assert record.parents == record.weights.parents


def test_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    assert _run(tmp_path / "one").identity() == _run(tmp_path / "two").identity()


def test_warm_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    tiny_unet(block_out_channels=(8, 16, 16, 16)).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseModelError, match="not a UNet of the base's architecture"):
        _run(tmp_path, warm_start=tmp_path / "other")
