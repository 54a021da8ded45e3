"""An instrument that does not order what is known is shown, and carries no verdict."""

from pathlib import Path

import numpy as np
import pytest

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, GuidancePoint, RealSplit, VariantComparison
from artifacts_schema.licences import INSTRUMENTS, Instrument, LicenceRecord
from artifacts_schema.references import ObjectRef
from steps.evaluation.distances import Estimate, clustered_mean
from steps.evaluation.licences import (
    LOWER_IS_BETTER,
    ORDERS,
    UNLICENSED,
    evidence,
    licence_folders,
    licences_of,
    with_licences,
)
from steps.files.errors import EvaluationError

GROUPS = [str(number // 2) for number in range(20)]
NOISE = np.linspace(0.0, 0.02, 20)
FROZEN = "f" * 64


def levels(instrument: Instrument, step: float) -> dict[str, Estimate]:
    """Every level that is known, each `step` worse than the one before."""
    names = list(dict.fromkeys(name for pair in ORDERS[instrument] for name in pair))
    if instrument in ("clip_score", "retrieval_top1"):
        names = ["real", "base_50", "base_2", "shuffled"]
    sign = 1.0 if instrument in LOWER_IS_BETTER else -1.0
    bent = np.where(np.arange(20) % 4 < 2, 0.3, -0.3)  # groups disagree about one level
    return {
        name: clustered_mean(NOISE + sign * step * place + (bent if name == "base_2" else 0.0), GROUPS)
        for place, name in enumerate(names)
    }


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_levels_apart_on_both_sets_of_noise_make_an_order(instrument: Instrument) -> None:
    far, near = levels(instrument, 1.0), levels(instrument, 0.05)
    assert evidence(instrument, [far, far]).ordered
    assert not evidence(instrument, [far, near]).ordered  # not decided on the second
    assert not evidence(instrument, [levels(instrument, -1.0)] * 2).ordered


def test_the_order_of_real_and_base_is_open() -> None:
    found = levels("clip_score", 1.0)
    found["real"], found["base_50"] = found["base_50"], found["real"]
    assert evidence("clip_score", [found]).ordered


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 1, high=value + 1, n=64)


def evaluation(pictures: int = 2048, frozen: str = FROZEN) -> EvaluationRecord:
    ref = ObjectRef(uri="x", sha256="x", bytes=1)
    point = GuidancePoint(
        guidance_scale=3.0,
        kernel_distance=interval(0.1),
        frechet_distance=1.0,
        clip_score=interval(0.1),
        retrieval_top1=interval(0.1),
        retrieval_candidates=100,
        images=ref,
    )
    real = RealSplit(features=ref, captions=("a",), point=point, point_captions=("a",), sha256="x")
    return EvaluationRecord(
        stage="evaluation",
        variant="base_50",
        title="base",
        sampler="ddim",
        steps=50,
        point=point,
        real=real,
        pictures=pictures,
        captions=("a",),
        protocol={"frozen": frozen},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Licences of 2,048 pictures, where only the CLIP score orders."""
    record = LicenceRecord(
        stage="instruments",
        name="test",
        protocol=FROZEN,
        evaluator="e",
        features="f",
        pictures=2048,
        instruments=tuple(
            evidence(name, [levels(name, 1.0 if name == "clip_score" else 0.05)] * 2) for name in INSTRUMENTS
        ),
    )
    (tmp_path / "test.json").write_text(record.to_json())
    return tmp_path


def test_only_what_orders_carries_a_verdict(folder: Path) -> None:
    found = licences_of([evaluation()], [folder])
    assert [name for name, item in found.items() if item.licensed] == ["clip_score"]
    assert "base_50 from base_2" in found["kernel_distance"].reason
    comparison = VariantComparison(
        reference="base_50",
        other="student_8",
        reference_scale=3.0,
        other_scale=3.0,
        distance_difference=interval(5.0),
        distance_ratio=None,
        clip_difference=interval(5.0),
        distance_verdict="worse",
        clip_verdict="better",
    )
    shown = with_licences(comparison, found)
    assert (shown.clip_verdict, shown.distance_verdict) == ("better", UNLICENSED)
    assert shown.distance_difference == comparison.distance_difference


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (evaluation(pictures=64), "too few pictures for a claim: licensed at 2048, found 64"),
        (evaluation(frozen="a" * 64), "nobody measured it on the protocol aaaaaaaaaaaa"),
        (evaluation(frozen=""), "not on a frozen protocol"),
    ],
)
def test_without_a_fitting_licence_there_is_none(folder: Path, record: EvaluationRecord, reason: str) -> None:
    found = licences_of([record], [folder])
    assert set(found) == set(INSTRUMENTS)
    assert not any(item.licensed for item in found.values())
    assert all(reason in item.reason for item in found.values())


def test_damaged_licences_are_named(folder: Path) -> None:
    (folder / "test.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"test\.json cannot be read"):
        licences_of([evaluation()], [folder])


def test_licences_of_ones_own_protocols_lie_beside_them(tmp_path: Path) -> None:
    assert tmp_path / "mine" / "licences" in licence_folders("mine/protocols", tmp_path)
    assert len(licence_folders("frozen", tmp_path)) == 1
