"""velocity_finetuning: eps to v, warm starts, and v bases that need nothing."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from artifacts_schema.stage_configs import TrainingConfig, VelocityFinetuningConfig
from steps.files.errors import BaseModelError
from steps.models.base_folder import folder_identity
from steps.models.stored import load_model
from steps.stages.velocity_finetuning import finetune
from tests.factories import LATENT_SHAPE, stage_context, tiny_data, two_level_base, two_level_unet
from tests.steps.diffusion.fakes import FakeData

CONFIG = VelocityFinetuningConfig(training=TrainingConfig(iterations=6, batch_size=4, log_interval=2))


def test_trains_a_velocity_unet_and_leaves_the_base_alone(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    context = stage_context(tmp_path, "velocity_finetuning")
    record = finetune(base, tiny_data(), CONFIG, context)
    assert record.prediction_type == "v_prediction"
    assert record.iterations == 6
    assert [row["iteration"] for row in record.curve] == [2, 4, 6]
    assert {"loss", "original", "base"} <= set(record.curve[0])
    assert record.parents == (folder_identity(base.path),)
    trained = load_model(context.store, record.weights).state_dict()
    assert all(torch.equal(before[name], value) for name, value in base.unet.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in trained.items())


def test_a_velocity_base_is_passed_on_as_it_is(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base", prediction_type="v_prediction")
    context = stage_context(tmp_path, "velocity_finetuning")
    record = finetune(base, tiny_data(), CONFIG, context)
    assert record.skipped
    assert record.iterations == 0
    assert record.prediction_type == "v_prediction"
    loaded = load_model(context.store, record.weights).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in base.unet.state_dict().items())


def test_the_loss_falls(tmp_path: Path) -> None:
    training = TrainingConfig(
        iterations=40, batch_size=8, learning_rate=1e-2, warmup_iterations=1, log_interval=10
    )
    data = FakeData(samples=16, shape=LATENT_SHAPE, mean=2.0, deviation=0.1)
    config = VelocityFinetuningConfig(training=training)
    context = stage_context(tmp_path, "velocity_finetuning")
    record = finetune(two_level_base(tmp_path / "base"), data, config, context)
    assert record.curve[-1]["original"] < 0.7 * record.curve[0]["original"]


def test_starts_from_a_warm_start_and_says_so(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    warm = tmp_path / "warm"
    two_level_unet(seed=7).save_pretrained(warm)
    (warm / "warm_start.json").write_text(json.dumps({"base_identity": folder_identity(base.path)}))
    context = stage_context(tmp_path, "velocity_finetuning")
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"iterations": 0})})
    record = finetune(base, tiny_data(), config, context, warm_start=warm)
    assert record.warm_start == folder_identity(warm)
    loaded, expected = (
        load_model(context.store, record.weights).state_dict(),
        two_level_unet(seed=7).state_dict(),
    )
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_warm_start_of_another_base_is_refused(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    warm = tmp_path / "warm"
    two_level_unet(seed=7).save_pretrained(warm)
    (warm / "warm_start.json").write_text(json.dumps({"base_identity": "0" * 64}))
    with pytest.raises(BaseModelError, match="belongs to base 0000.*warm_start = false"):
        finetune(base, tiny_data(), CONFIG, stage_context(tmp_path, "velocity_finetuning"), warm_start=warm)


def test_a_warm_start_without_some_weights_is_refused(tmp_path: Path) -> None:
    base, warm = two_level_base(tmp_path / "base"), tmp_path / "warm"
    two_level_unet(seed=7).save_pretrained(warm)
    (path,) = warm.glob("*.safetensors")
    save_file({n: v for n, v in load_file(path).items() if n != "conv_in.weight"}, path)
    with pytest.raises(BaseModelError, match=r"/warm: .*1 tensors missing \(conv_in\.weight\)"):
        finetune(base, tiny_data(), CONFIG, stage_context(tmp_path, "velocity_finetuning"), warm_start=warm)


def test_a_warm_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    config = dict(two_level_unet().config) | {"cross_attention_dim": 6}
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "warm")
    with pytest.raises(BaseModelError, match="not a UNet of the base's architecture"):
        finetune(
            base,
            tiny_data(),
            CONFIG,
            stage_context(tmp_path, "velocity_finetuning"),
            warm_start=tmp_path / "warm",
        )
