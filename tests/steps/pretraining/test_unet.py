"""Training of the embedded UNet, and the folder that is written of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from artifacts_schema.pretraining import UNetConfig
from artifacts_schema.run_configs import DataConfig
from artifacts_schema.stage_configs import TrainingConfig
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_data
from steps.diffusion.schedule import NoiseSchedule
from steps.files.progress import NullProgress
from steps.models.base import BaseModel, load_base
from steps.pretraining import base as module
from steps.pretraining.base import SCHEDULER, held_out_losses, new_unet, train_unet, write_base
from steps.pretraining.micro import write_micro_base
from steps.pretraining.seeds import seed_ratio, seed_ratios
from steps.store import LocalStore

SCHEDULE = NoiseSchedule.from_config(SCHEDULER)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(write_micro_base(tmp_path_factory.mktemp("micro") / "base"))


@pytest.fixture(scope="module")
def data(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    store, config = LocalStore(folder / "store"), DataConfig(limit=4, variants=2)
    ref = prepare_data(base, config, store, progress=NullProgress())
    return PreparedData.load(store, ref)


class _Constant(nn.Module):
    """Predicts the same eps everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: list[Tensor] = []

    def forward(self, z: Tensor, t: Tensor, embeddings: Tensor) -> Any:
        self.seen.append(t)
        return type("Output", (), {"sample": torch.full_like(z, self.value)})


def test_held_out_losses_are_those_of_eps_and_v(data: PreparedData) -> None:
    model = _Constant(0.0)
    losses = held_out_losses(model, data, "validation", SCHEDULE)
    assert losses["eps_mse"] == pytest.approx(1.0, abs=0.02)  # of unit noise
    t = torch.cat(model.seen)
    alpha = SCHEDULE.alpha(t).flatten()
    assert losses["l_ori"] == pytest.approx(float(alpha.square().reciprocal().mean()), rel=0.05)
    quarters = torch.bincount(t // 250, minlength=4)
    assert set(quarters.tolist()) == {data.size("validation")}


def test_held_out_losses_draw_the_same_whenever_called(data: PreparedData) -> None:
    once, again = (held_out_losses(_Constant(0.5), data, "validation", SCHEDULE) for _ in range(2))
    assert once == again


def test_training_keeps_the_best_averaged_state_and_goes_on(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVALUATE_EVERY", 2)

    def run(iterations: int) -> tuple[nn.Module, dict[str, float], list[dict[str, float]]]:
        training = TrainingConfig(
            iterations=iterations,
            batch_size=4,
            learning_rate=1e-3,
            warmup_iterations=1,
            cosine_iterations=2,
            log_interval=1,
            checkpoint_interval_s=0.01,
        )
        config = UNetConfig(seed=0, widths=(8, 16, 16, 16), norm_groups=4, heads=2, training=training)
        unet = new_unet(config, latent_size=16, latent_channels=4, text_width=16)
        folder = tmp_path / "unet"
        outcome, chosen = train_unet(config, unet, data, seed=0, folder=folder, progress=NullProgress())
        return outcome.model, chosen, outcome.curve

    run(4)
    model, chosen, curve = run(6)
    assert [int(row["iteration"]) for row in curve if "validation_l_ori" in row] == [2, 4, 6]
    lowest = min((row["validation_l_ori"], row["iteration"]) for row in curve if "validation_l_ori" in row)
    assert (chosen["best_validation_l_ori"], chosen["best_iteration"]) == lowest
    found = held_out_losses(model, data, "validation", SCHEDULE)["l_ori"]
    assert found == pytest.approx(lowest[0], rel=1e-5)


def test_the_written_base_works_without_a_dtype(base: BaseModel, tmp_path: Path) -> None:
    write_base(
        tmp_path, unet=base.unet, vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer
    )
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    picture = pipeline("woman surfing", num_inference_steps=1, height=64, width=64, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_seed_ratio_is_of_the_distances() -> None:
    apart = torch.tensor([[[0.0], [1.0]], [[10.0], [11.0]]])
    assert seed_ratio(apart) == pytest.approx(1 / 10)  # between: 10, 11, 9, 10
    assert seed_ratio(torch.randn(20, 20, 64)) == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="found 1 and 2"):
        seed_ratio(apart[:1])


class _Pixels:
    name = "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()


def test_seed_ratios_of_base_and_real_pictures(base: BaseModel, data: PreparedData) -> None:
    kinds = {"steps": 1, "guidance_scale": 2.0, "captions": 3}
    ratios = seed_ratios(base, data, _Pixels(), seeds=2, **kinds)  # type: ignore[arg-type]
    first, second = (data.images("validation", torch.tensor([0, 2, 6]) + v) for v in (0, 1))
    real = seed_ratio(torch.stack([first, second], 1).flatten(2).float())
    assert ratios["real"] == pytest.approx(real)
    assert ratios["base"] > 0
    assert set(seed_ratios(base, data, _Pixels(), seeds=3, **kinds)) == {"base"}  # type: ignore[arg-type]
