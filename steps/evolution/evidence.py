"""What probes say about a change: paired differences, pooled over rounds. Pure arithmetic."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from steps.files.errors import EvaluationError


@dataclass(frozen=True)
class Estimate:
    """CLIP score that a change loses, with its standard error. `n` captions of this round are behind it."""

    mean: float
    error: float
    n: int

    def upper(self, confidence: float) -> float:
        """`confidence` standard errors above the mean."""
        return self.mean + confidence * self.error

    def lower(self, confidence: float) -> float:
        """`confidence` standard errors below the mean."""
        return self.mean - confidence * self.error


def estimate(differences: Sequence[float]) -> Estimate:
    """Mean of what was lost at each of at least two captions. Raises EvaluationError for a number that is not finite."""
    n = len(differences)
    if n < 2:
        raise ValueError(f"a standard error takes at least two captions, found {n}")
    if not all(map(math.isfinite, differences)):
        raise EvaluationError(
            "expected finite CLIP scores from a probe, found NaN or infinity; look at the UNet's outputs and at "
            "the evaluator evaluation.signal_clip"
        )
    return Estimate(fmean(differences), stdev(differences) / math.sqrt(n), n)


def drift_variance(earlier: Mapping[str, Estimate], now: Mapping[str, Estimate]) -> float:
    """By how much true losses moved between two rounds: the variance of what both estimates do not explain.

    A method of moments over the changes that both rounds know: mean of (now - earlier)^2 - both squared errors, at least 0.
    What all of them have in common (removals make the rest dearer) counts as movement, too.
    """
    common = [(earlier[key], now[key]) for key in now if key in earlier]
    if not common:
        return 0.0
    return max(0.0, fmean((b.mean - a.mean) ** 2 - a.error**2 - b.error**2 for a, b in common))


def pooled(earlier: Mapping[str, Estimate], now: Mapping[str, Estimate], drift: float) -> dict[str, Estimate]:
    """`now` with the evidence of earlier rounds, weighted by inverse variance.

    A probe of an earlier round was of another network: the true loss is taken for a random walk over the rounds, with the
    variance `drift` per round, which the earlier estimate's own is raised by (one step of a Kalman filter).
    """
    result = dict(now)
    for key, new in now.items():
        if (old := earlier.get(key)) is None:
            continue
        old_variance, variance = old.error**2 + drift, new.error**2
        total = old_variance + variance
        share = old_variance / total if total > 0.0 else 1.0  # of the new one
        mean = share * new.mean + (1.0 - share) * old.mean
        result[key] = Estimate(mean, math.sqrt(share * variance), new.n)
    return result
