"""Distances against clean-fid's own code, and what their intervals mean."""

import numpy as np
import pytest
from cleanfid import fid as cleanfid

from steps.evaluation.distances import (
    frechet_distance,
    interval,
    kernel_block_means,
    kernel_distance,
    numpy_seed,
)
from steps.files.errors import EvaluationError

RANDOM = np.random.default_rng(0)


def features(n: int, shift: float = 0.0, d: int = 16) -> np.ndarray:  # type: ignore[type-arg]
    return (RANDOM.normal(size=(n, d)) + shift).astype(np.float32)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")  # clean-fid's own call
def test_frechet_distance_equals_clean_fid() -> None:
    a, b = features(400), features(300, 0.5)
    expected = cleanfid.frechet_distance(
        a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_with_fewer_pictures_than_dimensions() -> None:
    a = features(8, d=64)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-4)


def test_one_block_of_the_kernel_distance_is_clean_fids() -> None:
    a, b = features(32), features(64, 0.3)
    with numpy_seed(3):
        expected = cleanfid.kernel_distance(
            a[:16].astype(float), b.astype(float), num_subsets=20, max_subset_size=16
        )
    assert kernel_block_means(a, b, seed=3, blocks=2)[0] == pytest.approx(expected)


def test_kernel_distance_is_unbiased_for_equal_distributions() -> None:
    found = kernel_distance(features(512), features(512), seed=0)
    assert found.low < 0.0 < found.high


def test_kernel_distance_sees_a_shift() -> None:
    found = kernel_distance(features(256, 1.0), features(256), seed=0)
    assert found.low > 0.0


def test_the_same_seed_gives_the_same_number_and_leaves_numpy_alone() -> None:
    a, b = features(64), features(64)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    assert kernel_distance(a, b, seed=5) == kernel_distance(a, b, seed=5)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_too_few_pictures_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="at least 4"):
        kernel_distance(features(3), features(64), seed=0)


def test_interval_covers_the_mean_in_about_95_percent_of_draws() -> None:
    covered = sum(
        found.low <= 2.0 <= found.high
        for found in (interval((RANDOM.normal(size=12) + 2.0).tolist()) for _ in range(400))
    )
    assert 360 <= covered <= 396
