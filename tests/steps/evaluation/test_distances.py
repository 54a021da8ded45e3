"""Distances against clean-fid's own code, and what their intervals mean."""

import numpy as np
import pytest
from cleanfid import fid as cleanfid

from steps.evaluation import distances
from steps.evaluation.distances import Estimate, clustered_mean, frechet_distance, kernel_distance
from steps.files.errors import EvaluationError

RANDOM = np.random.default_rng(0)


def features(n: int, shift: float = 0.0, d: int = 16) -> np.ndarray:  # type: ignore[type-arg]
    return (RANDOM.normal(size=(n, d)) + shift).astype(np.float32)


def each(n: int, name: str = "") -> list[str]:
    """A group of its own for every picture."""
    return [f"{name}{i}" for i in range(n)]


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


def test_kernel_distance_of_pictures_without_groups_is_clean_fids() -> None:
    a, b = features(48), features(48, 0.3)
    expected = cleanfid.kernel_distance(a.astype(float), b.astype(float), num_subsets=1, max_subset_size=48)
    found = kernel_distance(a, b, groups=each(48), real_groups=each(48, "real"))
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_pairs_within_a_group_do_not_count() -> None:
    """Against a plain loop over all pairs."""
    a, b = features(9), features(6, 0.4)
    first, second = list("aabbbccdd"), list("abbccd")

    def mean(x, y, left, right):  # type: ignore[no-untyped-def]
        pairs = [
            (float(u @ v) / 16 + 1) ** 3
            for u, g in zip(x.astype(float), left, strict=True)
            for v, h in zip(y.astype(float), right, strict=True)
            if g != h
        ]
        return sum(pairs) / len(pairs)

    expected = mean(a, a, first, first) + mean(b, b, second, second) - 2 * mean(a, b, first, second)
    assert kernel_distance(a, b, groups=first, real_groups=second).value == pytest.approx(expected)


def test_a_group_leaves_on_both_sides() -> None:
    a, b, groups = features(20), features(20, 0.2), [str(i // 4) for i in range(20)]
    kept = [i for i, group in enumerate(groups) if group != "2"]
    names = [groups[i] for i in kept]
    without = kernel_distance(a, b, groups=groups, real_groups=groups).without
    assert without[2] == pytest.approx(
        kernel_distance(a[kept], b[kept], groups=names, real_groups=names).value
    )


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_intervals_of_grouped_pictures_cover_the_truth(shift: float) -> None:
    """Pictures of one group are alike, on both sides: as if they were independent, 6 in 10 would cover it."""
    groups = [str(i // 5) for i in range(100)]

    def drawn() -> Estimate:
        centre = RANDOM.normal(size=(20, 1, 4))
        a, b = ((centre + RANDOM.normal(size=(20, 5, 4)) + s).reshape(-1, 4) for s in (shift, 0.0))
        return kernel_distance(a.astype(np.float32), b.astype(np.float32), groups=groups, real_groups=groups)

    found = [drawn() for _ in range(200)]
    truth = float(np.mean([item.value for item in found]))
    spread = float(np.std([item.value for item in found]))
    covered = sum(item.interval().low <= truth <= item.interval().high for item in found)
    assert covered >= 170
    if shift:  # of equal sets the intervals are too wide, on the safe side
        half = float(np.mean([item.interval().high - item.value for item in found]))
        assert half / 2.09 == pytest.approx(spread, rel=0.3)
    else:
        assert abs(truth) < 3 * spread / np.sqrt(200)


def test_a_mean_knows_its_groups() -> None:
    """Four pictures of a group that say the same are one piece of evidence, not four."""
    values = np.repeat(RANDOM.normal(size=12), 4)
    grouped = clustered_mean(values, [str(i // 4) for i in range(48)]).interval()
    single = clustered_mean(values[::4], each(12)).interval()
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx(
        (single.value, single.low, single.high)
    )
    assert (grouped.n, single.n) == (48, 12)


def test_the_interval_of_a_mean_is_students() -> None:
    values = [1.0, 2.0, 3.0, 6.0]
    found = clustered_mean(values, each(4)).interval()
    assert (found.low, found.high) == pytest.approx(
        (3 - 3.18245 * 1.080123, 3 + 3.18245 * 1.080123), rel=1e-5
    )


def test_paired_estimates_lose_what_they_share() -> None:
    shared, groups = RANDOM.normal(size=40), each(40)
    first, second = clustered_mean(shared, groups), clustered_mean(shared + 0.01, groups)
    found = second.minus(first).interval()
    assert found.high - found.low < 1e-9 and found.value == pytest.approx(0.01)
    ratio = clustered_mean(2 * np.abs(shared), groups).over(clustered_mean(np.abs(shared), groups)).interval()
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0))


def test_a_ratio_over_nothing_is_refused() -> None:
    noise = clustered_mean([-1.0, 1.0, 0.5, -0.4], each(4))
    with pytest.raises(EvaluationError, match="a denominator above 0"):
        clustered_mean([1.0, 1.0, 1.0, 2.0], each(4)).over(noise)


def test_too_few_groups_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="at least 3 groups a side, found 3 and 2"):
        kernel_distance(features(6), features(6), groups=list("aabbcc"), real_groups=list("aaabbb"))
    with pytest.raises(EvaluationError, match="at least 2 groups .* found 1"):
        clustered_mean([1.0, 2.0], ["a", "a"]).interval()


def test_distances_of_many_pictures_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, groups = features(50), features(40, 0.2), [str(i // 3) for i in range(50)]
    whole = kernel_distance(a, b, groups=groups, real_groups=groups[:40])
    monkeypatch.setattr(distances, "_TOGETHER", 7)
    blocks = kernel_distance(a, b, groups=groups, real_groups=groups[:40])
    assert blocks.value == pytest.approx(whole.value)
    assert blocks.without == pytest.approx(whole.without)
