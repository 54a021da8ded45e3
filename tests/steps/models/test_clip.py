"""Evaluator models: packaged weights fit, text towers agree, folders are checked."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from steps.evaluation import features
from steps.evaluation.features import EfficientNetLite0, load_features
from steps.evaluation.pictures import grid, png
from steps.files.errors import EvaluationError
from steps.models.clip import CONFIG, WEIGHTS, ClipScorer, encode_text, tokenize
from steps.pretraining.micro import write_micro_openclip


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    return ClipScorer.load(write_micro_openclip(tmp_path_factory.mktemp("clip") / "openclip"))


def pictures(n: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_efficientnet_weights_know_pictures() -> None:
    found = EfficientNetLite0()(pictures(3))
    assert found.shape == (3, 1280)
    assert torch.isfinite(found).all()
    # Loaded into the wrong places the network would be a constant; the packaged ImageNet weights are not.
    assert (found[0] - found[1]).abs().max() > 0.05
    assert (found == 0).float().mean() < 0.95


def test_unknown_features_are_refused() -> None:
    with pytest.raises(EvaluationError, match="found 'vgg'"):
        load_features("vgg")


def test_short_text_encoding_equals_openclips_own(scorer: ClipScorer) -> None:
    tokens = tokenize(scorer.tokenizer, ["red flag", "woman surfing dark skin tone", ""])
    with torch.no_grad():
        expected = scorer.model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(encode_text(scorer.model, tokens), expected, rtol=1e-4, atol=1e-5)


def test_scores_are_cosines_of_matching_pairs(scorer: ClipScorer) -> None:
    images, captions = pictures(4), ["a", "b", "c", "d"]
    both = scorer.image_embeddings(images) @ scorer.text_embeddings(captions).T
    torch.testing.assert_close(scorer.scores(images, captions), both.diagonal())


def test_scores_need_one_caption_per_picture(scorer: ClipScorer) -> None:
    with pytest.raises(EvaluationError, match="found 1 for 2"):
        scorer.scores(pictures(2), ["a"])


def test_folder_without_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="open_clip_config.json"):
        ClipScorer.load(tmp_path)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return write_micro_openclip(tmp_path / "clip")


Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: {n: v for n, v in w.items() if not n.startswith("visual")},
            r"tensors missing \(visual\.class_embedding, ",
        ),
        (lambda w: w | {"ln_final.weight": torch.zeros(3)}, r"of another shape \(ln_final\.weight\)"),
        (lambda w: w | {"visual.extra": torch.zeros(3)}, r"unknown to config \(visual\.extra\)"),
    ],
    ids=["missing", "of another shape", "too much"],
)
def test_evaluator_without_its_own_weights_is_refused(
    clip_folder: Path, change: Callable[[Weights], Weights], said: str
) -> None:
    save_file(change(load_file(clip_folder / WEIGHTS)), clip_folder / WEIGHTS)
    with pytest.raises(EvaluationError, match=rf"clip/{WEIGHTS} .*{said}"):
        ClipScorer.load(clip_folder)


def test_evaluator_with_a_stored_attention_mask_is_the_same(clip_folder: Path) -> None:
    """The model computes the mask; older OpenCLIP stored it."""
    expected = ClipScorer.load(clip_folder).scores(pictures(2), ["a", "b"])
    save_file(load_file(clip_folder / WEIGHTS) | {"attn_mask": torch.zeros(77, 77)}, clip_folder / WEIGHTS)
    torch.testing.assert_close(ClipScorer.load(clip_folder).scores(pictures(2), ["a", "b"]), expected)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_evaluator_that_cannot_be_read_is_named(clip_folder: Path, name: str) -> None:
    (clip_folder / name).write_bytes((clip_folder / name).read_bytes()[:100])
    with pytest.raises(EvaluationError, match="evaluator .*/clip cannot be read"):
        ClipScorer.load(clip_folder)


class TinyInception(torch.nn.Module):
    """Stands for NVIDIA's program: `layers` makes 2,048 features of pictures in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((32, 64)), torch.nn.Conv2d(3, 1, 1))


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(TinyInception()).save(str(path))
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_inception_makes_features_of_its_file(inception_file: Path) -> None:
    grey = torch.stack([torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (128, 255)])
    found = load_features("inception", inception_file)(grey)
    layers = torch.jit.load(str(inception_file)).layers
    assert found.shape == (2, 2048)
    for row, value in zip(found, (0.0, 127 / 128), strict=True):
        expected = layers(torch.full((1, 3, 299, 299), value)).flatten()
        torch.testing.assert_close(row, expected)


def test_a_program_of_other_bytes_is_never_run(inception_file: Path) -> None:
    with inception_file.open("ab") as file:
        file.write(b"planted")
    with pytest.raises(EvaluationError, match=r"inception-2015-12-05\.pt: expected SHA-256 .*not loaded"):
        load_features("inception", inception_file)


def test_inception_without_a_file_is_refused() -> None:
    with pytest.raises(EvaluationError, match="without a file"):
        load_features("inception")


def test_grid_places_pictures_in_rows() -> None:
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2, 3)])
    canvas = grid(images, columns=2, gap=1)
    assert canvas.shape == (3, 9, 9)
    assert canvas[0, 0, 0] == 1
    assert canvas[0, 0, 5] == 2
    assert canvas[0, 5, 0] == 3
    assert canvas[0, 5, 5] == 255
    assert png(canvas).startswith(b"\x89PNG")
