"""Real pictures are measured once; a variant measured under another protocol is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from artifacts_schema.config import EvaluationConfig, SnapFusionConfig
from artifacts_schema.evaluation import RealPicturesRecord
from steps.evaluation import bench as bench_module
from steps.files.errors import EvaluationError
from steps.stages.evaluation import run as evaluate
from steps.stages.real_pictures import load_real_features, run
from tests.steps.diffusion.tiny import stage_context

CONFIG = EvaluationConfig(pictures=6)


class Pictures:
    """Pictures of one grey each; "test" darker than "train"."""

    empty_embedding = torch.zeros(1, 3, 5)

    def size(self, split: str) -> int:
        return {"test": 8, "train": 12}[split]

    def captions(self, split: str) -> list[str]:
        return [f"grey {number}" for number in range(self.size(split))]

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), 3, 5)

    def images(self, split: str, indices: Tensor) -> Tensor:
        first = {"test": 10, "train": 100}[split]
        return (first + indices).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16)


class Clip:
    """Embeds a picture by its brightness and every caption alike."""

    def image_embeddings(self, images: Tensor) -> Tensor:
        mean = images.float().mean((1, 2, 3)) / 255
        return torch.stack([mean, (1 - mean**2).sqrt()], 1)

    def text_embeddings(self, captions: Any) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(captions), 1)


def brightness(images: Tensor) -> Tensor:
    """Features (n, 2) of pictures."""
    mean = images.float().mean((1, 2, 3)) / 255
    return torch.stack([mean, mean**2], 1)


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(bench_module, "load_features", lambda name, inception: brightness)
    return SimpleNamespace(data=Pictures(), measure_clip=Clip(), inception=None, identity=lambda name: name)


def settings(**changes: Any) -> SnapFusionConfig:
    return SnapFusionConfig(evaluation=CONFIG.model_copy(update=changes))


def measured(inputs: Any, folder: Path) -> tuple[RealPicturesRecord, Any]:
    context = stage_context(folder, "real_pictures")
    return run(inputs, settings(), context), context


def test_features_of_the_whole_split_are_stored(inputs: Any, tmp_path: Path) -> None:
    record, context = measured(inputs, tmp_path)
    features = load_real_features(context.store, record)
    torch.testing.assert_close(features[:, 0], torch.arange(10, 18) / 255)


def test_real_pictures_are_scored_against_the_train_split(inputs: Any, tmp_path: Path) -> None:
    record, _ = measured(inputs, tmp_path)
    # Test and train differ by about 92 grey levels of brightness: far from each other in these features.
    assert record.point.frechet_distance > 0.1
    assert 10 / 255 <= record.point.clip_score.value <= 17 / 255
    assert record.point.retrieval_candidates == 8


def test_real_pictures_of_another_protocol_are_refused(inputs: Any, tmp_path: Path) -> None:
    record, context = measured(inputs, tmp_path)
    earlier = {"real_pictures": record, "unet": None, "decoder": None}
    inputs.earlier = earlier.__getitem__
    other = settings(guidance_scales=(7.0,))
    with pytest.raises(EvaluationError, match="measured under .*'guidance_scales': \\[3.0\\].*, this is"):
        evaluate(inputs, other, replace(context, label="base_50"))
