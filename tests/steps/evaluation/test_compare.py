"""Comparisons: paired, honest about n, and refused for unlike protocols."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, GuidancePoint, RealSplit
from steps.evaluation.compare import UNDECIDED, compare, verdict
from steps.files.errors import EvaluationError
from steps.store import LocalStore

SOME = Interval(value=0.0, low=-1.0, high=1.0, n=32)


def record(store: LocalStore, variant: str, clip: torch.Tensor, **protocol: object) -> EvaluationRecord:
    count = len(clip)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "images": torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        "features": torch.randn(count, 8, generator=generator),
        "clip": clip,
        "caption": torch.arange(count),
    }
    point = GuidancePoint(
        guidance_scale=3.0,
        kernel_distance=SOME,
        frechet_distance=1.0,
        clip_score=SOME,
        retrieval_top1=SOME,
        retrieval_candidates=100,
        images=store.put_bytes(save(tensors)),
    )
    captions = tuple(f"caption {number}" for number in range(count))
    features = store.put_bytes(save({"features": torch.randn(count, 8, generator=generator)}))
    real = RealSplit(
        features=features, captions=captions, point=point, point_captions=captions, sha256="0" * 64
    )
    return EvaluationRecord(
        stage="evaluation",
        variant=variant,
        title=variant,
        sampler="ddim",
        steps=8,
        point=point,
        real=real,
        pictures=count,
        captions=captions,
        protocol={"noise_seed": 1, "split": "test", **protocol},
    )


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_a_paired_difference_is_decided_where_an_unpaired_one_would_not_be(store: LocalStore) -> None:
    spread = torch.linspace(-1.0, 1.0, 32)
    found = compare(store, record(store, "a", spread), record(store, "b", spread + 0.05))
    assert found.clip_difference.value == pytest.approx(0.05)
    assert found.clip_verdict == "better"
    assert found.distance_verdict == UNDECIDED


def test_noise_is_not_decidable(store: LocalStore) -> None:
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))
    found = compare(store, record(store, "a", torch.zeros(32)), record(store, "b", noise - noise.mean()))
    assert found.clip_verdict == UNDECIDED


def test_unlike_protocols_are_refused_with_the_difference(store: LocalStore) -> None:
    first, second = record(store, "a", torch.zeros(8)), record(store, "b", torch.zeros(8), split="validation")
    with pytest.raises(EvaluationError, match="split: 'test' and 'validation'"):
        compare(store, first, second)


def test_groups_weigh_as_one(store: LocalStore) -> None:
    """Sixteen pictures of two people are not sixteen pieces of evidence."""
    gain = torch.tensor([0.1, 0.3]).repeat_interleave(8)
    captions = tuple(["woman surfing light skin tone"] * 8 + ["man biking dark skin tone"] * 8 + ["sun"] * 8)
    first, second = (
        record(store, name, values).model_copy(update={"captions": captions})
        for name, values in (("a", torch.zeros(24)), ("b", torch.cat([gain, torch.full((8,), -0.1)])))
    )
    found = compare(store, first, second)
    assert found.clip_difference.value == pytest.approx(0.1)
    assert found.clip_verdict == UNDECIDED


def test_a_ratio_is_given_where_it_means_something(store: LocalStore) -> None:
    first = record(store, "a", torch.zeros(32))
    assert compare(store, first, record(store, "b", torch.zeros(32))).distance_ratio is None
    tensors = load_file(store.path_of(first.point.images))
    far = []
    for name, shift in (("a", 2.0), ("b", 4.0)):
        images = store.put_bytes(save({**tensors, "features": tensors["features"] + shift}))
        point = first.point.model_copy(update={"images": images})
        far.append(first.model_copy(update={"variant": name, "point": point}))
    ratio = compare(store, far[0], far[1]).distance_ratio
    assert ratio is not None and 1.0 < ratio.low < ratio.value < ratio.high


def test_verdicts() -> None:
    better = Interval(value=-1, low=-2, high=-0.5, n=9)
    assert verdict(better, better_when="lower") == "better"
    assert verdict(better, better_when="higher") == "worse"
