"""Comparisons of variants: paired, with intervals, and silent where the interval does not decide. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, VariantComparison
from steps.data.groups import picture_group
from steps.evaluation.distances import Estimate, clustered_mean, kernel_distance
from steps.files.errors import EvaluationError
from steps.store.base import Store

UNDECIDED = "not decidable at this n"


def compare(store: Store, reference: EvaluationRecord, other: EvaluationRecord) -> VariantComparison:
    """Set two variants side by side, each at its own guidance scale. Raises EvaluationError for unlike protocols."""
    if reference.protocol_hash != other.protocol_hash:
        raise EvaluationError(unlike(reference.protocol, other.protocol, (reference.variant, other.variant)))
    first, second = (load_file(store.path_of(record.point.images)) for record in (reference, other))
    groups = [picture_group(caption) for caption in reference.captions]
    clip = clustered_mean((second["clip"] - first["clip"]).tolist(), groups).interval("cosine")
    distances = [_distance(store, reference, tensors, groups) for tensors in (first, second)]
    difference = distances[1].minus(distances[0]).interval()
    try:
        ratio = distances[1].over(distances[0]).interval()
    except EvaluationError:  # the reference cannot be told from real pictures
        ratio = None
    return VariantComparison(
        reference=reference.variant,
        other=other.variant,
        reference_scale=reference.point.guidance_scale,
        other_scale=other.point.guidance_scale,
        distance_difference=difference,
        distance_ratio=ratio,
        clip_difference=clip,
        distance_verdict=verdict(difference, better_when="lower"),
        clip_verdict=verdict(clip, better_when="higher"),
    )


def verdict(difference: Interval, *, better_when: str) -> str:
    """ "better", "worse", or that this many pictures cannot tell."""
    if difference.low <= 0.0 <= difference.high:
        return UNDECIDED
    higher = difference.value > 0.0
    return "better" if higher == (better_when == "higher") else "worse"


def unlike(first: Mapping[str, Any], second: Mapping[str, Any], names: Sequence[str]) -> str:
    """Which fields of two protocols differ, in words."""
    fields = [
        f"{key}: {first.get(key)!r} and {second.get(key)!r}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]
    return f"{names[0]} and {names[1]} were not evaluated alike and cannot be compared ({'; '.join(fields)})"


def _distance(
    store: Store, record: EvaluationRecord, tensors: Mapping[str, NDArray[np.float32]], groups: Sequence[str]
) -> Estimate:
    real = load_file(store.path_of(record.real.features))["features"]
    real_groups = [picture_group(caption) for caption in record.real.captions]
    return kernel_distance(tensors["features"], real, groups=groups, real_groups=real_groups)
