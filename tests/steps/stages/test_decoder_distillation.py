"""decoder_distillation: the pool of synthetic latents and the training on it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts_schema.distillation_configs import DecoderDistillationConfig
from artifacts_schema.stage_configs import TrainingConfig
from steps.diffusion.schedule import NoiseSchedule
from steps.inputs import latent_pool
from steps.inputs.latent_pool import PoolSettings, build_pool
from steps.latency.macs import count_macs
from steps.models.stored import load_model
from steps.stages import decoder_distillation
from steps.training.randomness import epoch_indices, keyed_normal
from steps.unet.small_decoder import SmallDecoder
from tests.factories import LATENT_SHAPE, stage_context, tiny_data, two_level_base

SETTINGS = PoolSettings(size=6, ddim_steps=2, guidance_scale=3.0)


@pytest.fixture
def chunks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_pool, "CHUNK", 4)


def count_generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many latents each call of the generator made."""
    generated: list[int] = []
    original = latent_pool._generate

    def counting(*arguments: Any, **named: Any) -> torch.Tensor:
        result = original(*arguments, **named)
        generated.append(len(result))
        return result

    monkeypatch.setattr(latent_pool, "_generate", counting)
    return generated


@pytest.mark.usefixtures("chunks_of_four")
def test_pool_holds_the_full_decoders_pictures_of_the_bases_latents(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    pool = build_pool(base, tiny_data(), SETTINGS, stage_context(tmp_path, "decoder_distillation"))
    latents, pictures = pool.rows(torch.tensor([5, 0, 3]))
    assert len(pool) == 6
    assert latents.shape == (3, *LATENT_SHAPE)
    assert pictures.shape == (3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(pictures, base.vae.decode(latents).sample, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0, 4.0])
def test_pool_is_drawn_as_configured(tmp_path: Path, guidance_scale: float) -> None:
    base, data = two_level_base(tmp_path / "base"), tiny_data()
    context = stage_context(tmp_path, "decoder_distillation")
    pool = build_pool(base, data, PoolSettings(4, 3, guidance_scale), context)
    captions = epoch_indices(samples=16, start=0, count=4, seed=context.seed)
    noise = keyed_normal(
        LATENT_SHAPE, seed=context.seed, name="latent pool", iteration=0, indices=torch.arange(4)
    )
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    for index in range(4):
        z = noise[index : index + 1]
        for t, following in ((999, 666), (666, 332), (332, -1)):
            now, then = torch.tensor([t]), torch.tensor([following])
            with torch.no_grad():
                eps, free = (
                    base.unet(z, now, text).sample
                    for text in (data.embeddings("train", captions[index : index + 1]), data.empty_embedding)
                )
            eps = guidance_scale * eps - (guidance_scale - 1) * free
            x = (z - schedule.sigma(now) * eps) / schedule.alpha(now)
            z = schedule.alpha(then) * x + schedule.sigma(then) * eps
        found = pool.rows(torch.tensor([index]))[0] * base.scaling_factor
        assert (found - z).abs().max() < 2e-3 * z.abs().max()


@pytest.mark.usefixtures("chunks_of_four")
def test_finished_chunks_are_not_generated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = two_level_base(tmp_path / "base"), tiny_data()
    generated = count_generated(monkeypatch)
    first = build_pool(base, data, SETTINGS, stage_context(tmp_path, "a"))
    assert generated == [4, 2]
    # Another training of the decoder, and a larger pool: only what is new is made.
    build_pool(base, data, SETTINGS, stage_context(tmp_path, "b"))
    assert generated == [4, 2]
    larger = build_pool(base, data, PoolSettings(8, 2, 3.0), stage_context(tmp_path, "b"))
    assert generated == [4, 2, 4]
    everything = torch.arange(6)
    torch.testing.assert_close(first.rows(everything)[0], larger.rows(everything)[0], atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("chunks_of_four")
@pytest.mark.parametrize("changed", ["seed", "steps", "guidance"])
def test_another_setting_makes_another_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    base, data = two_level_base(tmp_path / "base"), tiny_data()
    build_pool(base, data, SETTINGS, stage_context(tmp_path, "a"))
    generated = count_generated(monkeypatch)
    settings = PoolSettings(6, 3 if changed == "steps" else 2, 4.0 if changed == "guidance" else 3.0)
    build_pool(base, data, settings, stage_context(tmp_path, "a", seed=2 if changed == "seed" else 1))
    assert generated == [4, 2]


@pytest.mark.usefixtures("chunks_of_four")
def test_a_pool_of_another_version_or_run_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another run only with `store.cache = false`."""
    base, data = two_level_base(tmp_path / "base"), tiny_data()
    generated, context = count_generated(monkeypatch), stage_context(tmp_path, "a")
    for changes in ({}, {"version": 2}, {"own_run": "3"}, {"own_run": "4"}):
        for made in ([4, 2], []):
            build_pool(base, data, SETTINGS, replace(context, **changes))  # type: ignore[arg-type]
            assert generated == made
            generated.clear()


@pytest.mark.usefixtures("chunks_of_four")
@pytest.mark.parametrize("pattern", ["objects/*/*", "documents/latent_pools/*.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + b"9" * 9, lambda _: b""])
def test_a_damaged_chunk_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, damage: Callable[[bytes], bytes]
) -> None:
    base, data = two_level_base(tmp_path / "base"), tiny_data()
    context = stage_context(tmp_path, "a")
    before = build_pool(base, data, SETTINGS, context).rows(torch.arange(6))
    generated = count_generated(monkeypatch)
    path = max((tmp_path / "store").glob(pattern), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    path.unlink()  # the pool that was read above keeps its own
    path.write_bytes(damage(whole))
    after = build_pool(base, data, SETTINGS, context).rows(torch.arange(6))
    assert len(generated) == 1
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))
    build_pool(base, data, SETTINGS, context)
    assert len(generated) == 1


def test_trains_a_smaller_decoder_towards_the_full_one(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    training = TrainingConfig(
        iterations=40, batch_size=4, learning_rate=5e-3, warmup_iterations=2, log_interval=20
    )
    config = DecoderDistillationConfig(pool_size=24, ddim_steps=2, training=training)
    context = stage_context(tmp_path, "decoder_distillation")
    record = decoder_distillation.distil_decoder(base, tiny_data(), config, context)
    metrics = record.metrics
    assert metrics["parameter_ratio"] == pytest.approx(4.0, rel=0.15)
    assert metrics["mac_ratio"] == pytest.approx(4.0, rel=0.15)
    assert metrics["macs_full"] == count_macs(lambda: base.vae.decode(torch.zeros(1, *base.latent_shape)))[0]
    assert metrics["psnr_db"] > metrics["psnr_start_db"] + 1.0
    assert metrics["held_out"] == 3.0
    assert "psnr_real_db" in metrics
    assert record.selection is not None
    assert record.selection.samples == 3
    # The best state's error and PSNR are those of the same pictures; only PSNR cuts them to [-1, 1].
    error = record.selection.at(record.selection.chosen)
    assert metrics["psnr_db"] == pytest.approx(10 * math.log10(4 / error), abs=0.2)
    small = load_model(context.store, record.weights)
    assert isinstance(small, SmallDecoder)
    assert sum(p.numel() for p in small.decoder.parameters()) < metrics["parameters_full"] / 3


def test_psnr_is_that_of_pictures_with_a_range_of_two() -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = torch.nn.Parameter(torch.tensor(0.2))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.value.expand(len(z), 3, 4, 4)

    pictures = torch.zeros(3, 3, 4, 4)
    # 10 log10(2^2 / 0.2^2) = 20 dB
    assert decoder_distillation.psnr_db(Half(), torch.zeros(3, 4, 1, 1), pictures) == pytest.approx(20.0)


def test_a_fresh_start_has_the_shape_of_the_sliced_one_and_none_of_its_weights(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    sliced, fresh, again = (
        decoder_distillation.first_decoder(base, DecoderDistillationConfig(start=start), 3).state_dict()
        for start in ("sliced", "fresh", "fresh")
    )
    assert {name: value.shape for name, value in sliced.items()} == {k: v.shape for k, v in fresh.items()}
    assert not torch.equal(sliced["decoder.conv_in.weight"], fresh["decoder.conv_in.weight"])
    assert torch.equal(fresh["decoder.conv_in.weight"], again["decoder.conv_in.weight"])
