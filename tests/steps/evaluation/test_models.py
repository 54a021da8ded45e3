"""Evaluator models: packaged weights fit, text towers agree, folders are checked."""

from pathlib import Path

import pytest
import torch

from steps.errors import EvaluationError
from steps.evaluation.clip_score import ClipScorer, encode_text, tokenize
from steps.evaluation.features import EfficientNetLite0, load_features
from steps.evaluation.pictures import grid, png
from steps.pretraining.micro import write_micro_openclip


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    return ClipScorer.load(write_micro_openclip(tmp_path_factory.mktemp("clip") / "openclip"))


def pictures(n: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_efficientnet_weights_know_pictures() -> None:
    features = EfficientNetLite0()(pictures(3))
    assert features.shape == (3, 1280)
    assert torch.isfinite(features).all()
    # Loaded into the wrong places the network would be a constant; the packaged ImageNet weights are not.
    assert (features[0] - features[1]).abs().max() > 0.05
    assert (features == 0).float().mean() < 0.95


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


def test_grid_places_pictures_in_rows() -> None:
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2, 3)])
    canvas = grid(images, columns=2, gap=1)
    assert canvas.shape == (3, 9, 9)
    assert canvas[0, 0, 0] == 1
    assert canvas[0, 0, 5] == 2
    assert canvas[0, 5, 0] == 3
    assert canvas[0, 5, 5] == 255
    assert png(canvas).startswith(b"\x89PNG")
