"""The embedded models' own trainings, at micro size."""

from pathlib import Path

import pytest
import torch

from artifacts_schema.pretraining import AutoencoderConfig, ClipModelConfig
from artifacts_schema.stage_configs import TrainingConfig
from steps.files.progress import NullProgress
from steps.models.base import load_base
from steps.pretraining import openclip
from steps.pretraining.autoencoder import train_autoencoder
from steps.pretraining.best import Best
from steps.pretraining.micro import write_micro_base
from steps.pretraining.openclip import model_cfg, new_model, text_tower, train_openclip
from steps.pretraining.pictures import Pictures, load_pictures, normalised, shifted
from steps.pretraining.tokenizer import load_tokenizer, train_tokenizer
from steps.training.batch import Batch

TRAINING = TrainingConfig(
    iterations=30, batch_size=16, learning_rate=3e-3, warmup_iterations=2, log_interval=10
)
CLIP = ClipModelConfig(
    seed=1,
    embed_dim=16,
    patch_size=16,
    vision_width=16,
    vision_layers=1,
    vision_head_width=8,
    text_width=16,
    text_layers=2,
    text_heads=2,
    training=TRAINING,
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = ["woman surfing dark skin tone", "flag: Nepal", "four leaf clover"] * 3
    return train_tokenizer(captions, tmp_path_factory.mktemp("tokenizer") / "t", entries=540)


@pytest.fixture(scope="module")
def some(tokenizer_folder: Path) -> Pictures:
    tokenizer = load_tokenizer(tokenizer_folder)
    return load_pictures("validation", size=64, tokenizer=tokenizer).spread(32)


def test_tokenizer_follows_clips_conventions(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokens = tokenizer("four leaf clover", padding="max_length", max_length=77).input_ids
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id == max(tokens) == len(tokenizer) - 1
    assert len(tokens) == 77
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == "four leaf clover"


def test_text_tower_has_openclips_hidden_states(tokenizer_folder: Path, some: Pictures) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    cfg = model_cfg(CLIP, image_size=64, vocabulary=len(tokenizer))
    model = new_model(CLIP, cfg).eval()
    with torch.no_grad():
        hidden = model.token_embedding(some.tokens) + model.positional_embedding
        expected = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask))
        found = text_tower(model, cfg, tokenizer)(some.tokens).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_contrastive_training_learns(tmp_path: Path, tokenizer_folder: Path, some: Pictures) -> None:
    cfg = model_cfg(CLIP, image_size=64, vocabulary=len(load_tokenizer(tokenizer_folder)))
    outcome, _ = train_openclip(
        CLIP, cfg, some, some, seed=0, folder=tmp_path, progress=NullProgress(), description="clip"
    )
    assert outcome.curve[-1]["loss"] < outcome.curve[0]["loss"]


def test_autoencoder_training_learns_and_sets_the_scaling_factor(tmp_path: Path, some: Pictures) -> None:
    config = AutoencoderConfig(
        seed=0, widths=(8, 8), norm_groups=4, training=TRAINING.model_copy(update={"batch_size": 4})
    )
    outcome, _ = train_autoencoder(config, some, some, seed=0, folder=tmp_path, progress=NullProgress())
    assert outcome.curve[-1]["mse"] < outcome.curve[0]["mse"]
    with torch.no_grad():
        latents = outcome.model.encode(normalised(some.images)).latent_dist.sample()  # type: ignore[operator]
    assert float((latents * outcome.model.config.scaling_factor).std()) == pytest.approx(1.0, abs=0.15)  # type: ignore[union-attr]


def test_shift_is_keyed_and_keeps_size(some: Pictures) -> None:
    batch = Batch(iteration=3, indices=torch.arange(4), seed=0)
    once, again = (shifted(normalised(some.images[:4]), batch) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == (4, 3, 64, 64)


def test_pictures_are_drawn_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    drawn, read = (
        load_pictures("test", size=16, tokenizer=tokenizer, variants=2, cache=tmp_path) for _ in range(2)
    )
    assert torch.equal(drawn.images, read.images)
    assert drawn.captions == read.captions
    assert drawn.captions[0] == drawn.captions[1] != drawn.captions[2]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_spread_has_one_picture_a_caption_of_all_variants(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    pictures = load_pictures("test", size=16, tokenizer=tokenizer, variants=2)
    few = pictures.spread(40)
    assert len(set(few.captions)) == len(few.images) == len(few.tokens) == 40
    rows = [int((pictures.images == image).flatten(1).all(1).nonzero()[0, 0]) for image in few.images]
    assert {row % 2 for row in rows} == {0, 1}
    assert [pictures.captions[row] for row in rows] == few.captions


class _Oracle(torch.nn.Module):
    """Embeds a picture and a caption by the number that they share."""

    def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.one_hot(((images[:, 0, 0, 0] + 1) * 127.5).round().long(), 8).float()


def test_retrieval_is_among_captions_and_not_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        openclip, "encode_text", lambda _, tokens: torch.nn.functional.one_hot(tokens[:, 0], 8).float()
    )
    numbers = torch.arange(4).repeat_interleave(2)
    shown = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])  # one picture of caption 2 shows caption 3's
    images = shown.to(torch.uint8)[:, None, None, None].expand(8, 3, 4, 4)
    pictures = Pictures(images, [str(n) for n in numbers.tolist()], numbers[:, None], variants=2)
    assert openclip.retrieval_top1(_Oracle(), pictures) == pytest.approx(7 / 8)


@pytest.mark.parametrize(("highest", "kept"), [(True, 3.0), (False, 1.0)])
def test_the_best_state_is_kept_and_found_again(tmp_path: Path, highest: bool, kept: float) -> None:
    model = torch.nn.Linear(1, 1)
    for iteration, value in enumerate([2.0, 3.0, 1.0, 2.0]):
        torch.nn.init.constant_(model.weight, value)
        Best(tmp_path, "measure", highest=highest).offer(iteration, value, model)
    torch.nn.init.zeros_(model.weight)
    chosen = Best(tmp_path, "measure", highest=highest).load(model)
    assert model.weight.item() == kept
    assert chosen == {"best_iteration": 1.0 if highest else 2.0, "best_measure": kept}
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_training_without_a_measurement_keeps_its_end(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    before = model.weight.item()
    assert Best(tmp_path, "measure", highest=True).load(model) == {}
    assert model.weight.item() == before


def test_micro_base_is_a_valid_base(tmp_path: Path) -> None:
    base = load_base(write_micro_base(tmp_path / "base"))
    assert base.latent_shape == (4, 16, 16)
    assert base.image_size == 64
    assert base.prediction_type == "epsilon"
