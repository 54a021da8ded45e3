"""Real pictures are measured once, as the reference of every variant and as what perfect pictures would get."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import RealPicturesRecord
from steps.evaluation import bench as bench_module
from steps.evaluation import subject
from steps.evaluation.subject import halves
from steps.files.errors import EvaluationError
from steps.stages.real_pictures import load_reference, run
from tests.factories import Shown, stage_context

CAPTIONS = 8


class Pictures:
    """Pictures of one grey each, two of every caption; "test" darker than "validation"."""

    empty_embedding = torch.zeros(1, 3, 5)

    def __init__(self, captions: int = CAPTIONS) -> None:
        self.count = captions

    def size(self, split: str) -> int:
        return len(self.captions(split))

    def captions(self, split: str) -> list[str]:
        return [f"grey {number // 2}" for number in range(2 * self.count)]

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), 3, 5)

    def images(self, split: str, indices: Tensor) -> Tensor:
        first = {"test": 10, "validation": 100}[split]
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


def stand_in(data: Pictures, **more: Any) -> Any:
    """What a stage is given, with these pictures."""
    return SimpleNamespace(
        data=data,
        signal_clip=Clip(),
        measure_clip=Clip(),
        inception=None,
        protocols=None,
        identity=lambda name: name,
        **more,
    )


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "load_features", lambda name, inception, device: brightness)


def measured(folder: Path, data: Pictures | None = None, **changes: Any) -> tuple[RealPicturesRecord, Any]:
    context = replace(stage_context(folder, "real_pictures"), **changes)
    return run(stand_in(data or Pictures()), SnapFusionConfig(), context), context


def test_half_of_a_captions_pictures_are_the_reference(tmp_path: Path) -> None:
    record, context = measured(tmp_path)
    found, captions = load_reference(context.store, record.splits["test"])
    assert captions == [f"grey {number}" for number in range(CAPTIONS)]
    assert found[:, 0] == pytest.approx([(11 + 2 * number) / 255 for number in range(CAPTIONS)])


def test_the_other_half_is_measured(tmp_path: Path) -> None:
    shown = Shown()
    record, _ = measured(tmp_path, progress=shown)
    assert shown.totals == [4 * CAPTIONS] and shown.done == [2 * CAPTIONS, 4 * CAPTIONS]
    dark, light = (record.splits[name].point for name in ("test", "validation"))
    assert dark.clip_score.value == pytest.approx(sum(10 + 2 * n for n in range(CAPTIONS)) / CAPTIONS / 255)
    assert light.clip_score.value - dark.clip_score.value == pytest.approx(90 / 255)
    assert dark.clip_score.n == CAPTIONS
    assert abs(dark.kernel_distance.value) < 1e-3  # neighbouring greys on both sides


def test_a_reference_of_its_own_is_what_distances_are_measured_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = measured(tmp_path / "plain")
    names = [f"apart {number}" for number in range(6)]

    def reference(first: int) -> Any:
        greys = (first + torch.arange(6)).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16)
        return lambda _: (greys, names)

    found = []
    for first in (50, 51):
        monkeypatch.setattr(subject.SplitSubject, "reference", reference(first))
        record, context = measured(tmp_path / str(first))
        split = record.splits["test"]
        features, captions = load_reference(context.store, split)
        assert captions == names
        assert features[:, 0] == pytest.approx([(first + number) / 255 for number in range(6)])
        assert len(split.point_captions) == split.point.clip_score.n == 2 * CAPTIONS  # all real pictures
        found.append(split)
    assert len({item.sha256 for item in (*found, plain.splits["test"])}) == 3
    assert found[0].point.kernel_distance.value > plain.splits["test"].point.kernel_distance.value


def test_only_the_first_pictures_are_kept_and_all_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of 5,000 pictures at 21 points were 83 GB."""
    whole, _ = measured(tmp_path / "whole")
    monkeypatch.setattr(bench_module, "KEPT_PICTURES", 4)
    record, context = measured(tmp_path / "some")
    point, other = (found.splits["test"].point for found in (record, whole))
    kept = load_file(context.store.path_of(point.images))
    assert {name: len(tensor) for name, tensor in kept.items()} == {
        "images": 4, "features": 8, "clip": 8, "caption": 8,
    }  # fmt: skip
    assert point.model_copy(update={"images": other.images}) == other


def test_instruments_compute_on_the_runs_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def load(name: str, inception: None, device: torch.device) -> Any:
        asked.append(device)
        return brightness

    monkeypatch.setattr(bench_module, "load_features", load)
    device = torch.device("meta")
    context = replace(stage_context(tmp_path, "real_pictures"), device=device)
    run(stand_in(Pictures()), SnapFusionConfig(), context)
    assert asked == [device, device]


def test_captions_with_one_picture_are_halved_by_group() -> None:
    captions = ["woman surfing light skin tone", "woman surfing dark skin tone", "red flag", "sun", "moon"]
    reference, against, real = (half.tolist() for half in halves(captions))
    assert reference == [0, 1, 2, 3, 4]
    assert (against, real) == ([2, 4], [0, 1, 3])


def test_the_identity_of_a_split_is_in_its_captions_and_pixels(tmp_path: Path) -> None:
    class Lighter(Pictures):
        def images(self, split: str, indices: Tensor) -> Tensor:
            return super().images(split, indices) + (indices[:, None, None, None] == 3).to(torch.uint8)

    first, second = (
        measured(tmp_path / name, data)[0] for name, data in (("a", Pictures()), ("b", Lighter()))
    )
    assert first.splits["test"].sha256 != second.splits["test"].sha256
    assert first.splits["test"].sha256 == measured(tmp_path / "c")[0].splits["test"].sha256


def test_too_few_different_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="'validation' has 2 captions of 2 different pictures"):
        measured(tmp_path, Pictures(captions=2))
