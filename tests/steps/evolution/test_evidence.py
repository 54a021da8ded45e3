"""Estimates of what a change loses, and pooling them over rounds."""

import math

import numpy as np
import pytest

from steps.evolution.evidence import Estimate, drift_variance, estimate, pooled
from steps.files.errors import EvaluationError


def test_an_estimate_is_the_mean_with_its_standard_error() -> None:
    found = estimate([0.1, 0.2, 0.2])
    assert found.mean == pytest.approx(0.5 / 3)
    # standard deviation of (0.1, 0.2, 0.2) is 0.057735, over sqrt(3)
    assert found.error == pytest.approx(1 / 30)
    assert found.n == 3
    assert found.upper(2.0) == pytest.approx(0.5 / 3 + 2 / 30)
    assert found.lower(2.0) == pytest.approx(0.5 / 3 - 2 / 30)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(EvaluationError, match="finite CLIP scores"):
        estimate([0.1, bad, 0.2])


def test_one_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two captions, found 1"):
        estimate([0.1])


def test_pooling_weights_by_inverse_variance_and_earlier_rounds_by_the_drift_too() -> None:
    earlier, now = {"a": Estimate(0.3, 0.03, 8)}, {"a": Estimate(0.1, 0.04, 8), "b": Estimate(0.2, 0.05, 8)}
    found = pooled(earlier, now, 0.0)
    assert found["a"].mean == pytest.approx((0.3 * 16 + 0.1 * 9) / 25)
    assert found["a"].error == pytest.approx(0.024)
    assert found["b"] == now["b"]
    drifted = pooled(earlier, now, 0.0007)  # 0.03^2 + 0.0007 = 0.04^2: both weigh the same
    assert drifted["a"].mean == pytest.approx(0.2)
    assert drifted["a"].error == pytest.approx(0.04 / 2**0.5)
    exact = {"a": Estimate(0.1, 0.0, 8)}
    assert pooled({"a": Estimate(0.3, 0.0, 8)}, exact, 0.0) == exact


def test_the_drift_is_what_errors_do_not_explain() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0.1, 0.1, 4000)
    moved = truth + rng.normal(0.0, 0.05, 4000)

    def measured(values: np.ndarray) -> dict[str, Estimate]:
        return {str(i): Estimate(float(v), 0.1, 8) for i, v in enumerate(values + rng.normal(0.0, 0.1, 4000))}

    assert drift_variance(measured(truth), measured(moved)) ** 0.5 == pytest.approx(0.05, abs=0.01)
    assert drift_variance(measured(truth), measured(truth)) ** 0.5 < 0.03
    assert drift_variance({}, measured(truth)) == 0.0


def test_pooled_errors_are_those_that_are_made() -> None:
    """A random walk of three rounds, its drift estimated: two thirds of the true values lie within one error."""
    rng = np.random.default_rng(1)
    truth, known, inside = rng.normal(0.1, 0.1, 2000), dict[str, Estimate](), 0.0
    for error in (0.02, 0.06, 0.1):
        own = {
            str(i): Estimate(float(v), error, 8) for i, v in enumerate(truth + rng.normal(0.0, error, 2000))
        }
        known = pooled(known, own, drift_variance(known, own))
        inside = np.mean([abs(known[str(i)].mean - truth[i]) < known[str(i)].error for i in range(2000)])
        truth = truth + rng.normal(0.0, 0.03, 2000)
    assert inside == pytest.approx(0.683, abs=0.04)
