"""Comparisons of variants: paired, with intervals, and silent where the interval does not decide."""

from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, GuidancePoint, VariantComparison
from steps.evaluation.distances import interval, kernel_block_means
from steps.files.errors import EvaluationError
from steps.store.base import Store

UNDECIDED = "not decidable at this n"


def compare(
    store: Store, reference: EvaluationRecord, other: EvaluationRecord, guidance_scale: float
) -> VariantComparison:
    """Set two variants side by side at one guidance scale. Raises EvaluationError for unlike protocols."""
    if reference.protocol_hash != other.protocol_hash:
        raise EvaluationError(_unlike(reference, other))
    first, second = (_tensors(store, _point(record, guidance_scale)) for record in (reference, other))
    captions = first["caption"]
    difference = second["clip"] - first["clip"]
    clip = interval([float(difference[captions == c].mean()) for c in captions.unique()], n=len(difference))
    distance = _distance_difference(store, reference, first, second)
    return VariantComparison(
        reference=reference.variant,
        other=other.variant,
        guidance_scale=guidance_scale,
        distance_difference=distance,
        clip_difference=clip,
        distance_verdict=verdict(distance, better_when="lower"),
        clip_verdict=verdict(clip, better_when="higher"),
    )


def verdict(difference: Interval, *, better_when: str) -> str:
    """ "better", "worse", or that this many pictures cannot tell."""
    if difference.low <= 0.0 <= difference.high:
        return UNDECIDED
    higher = difference.value > 0.0
    return "better" if higher == (better_when == "higher") else "worse"


def _distance_difference(
    store: Store, reference: EvaluationRecord, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
) -> Interval:
    """Kernel distance of the other minus that of the reference, paired by block, against the same real pictures."""
    real = _tensors(store, reference.real)["features"].numpy()
    blocks = [
        kernel_block_means(tensors["features"].numpy(), real, seed=reference.protocol["noise_seed"])
        for tensors in (first, second)
    ]
    return interval([b - a for a, b in zip(*blocks, strict=True)], n=len(first["features"]))


def _point(record: EvaluationRecord, guidance_scale: float) -> GuidancePoint:
    for point in record.points:
        if point.guidance_scale == guidance_scale:
            return point
    known = ", ".join(f"{point.guidance_scale:g}" for point in record.points)
    raise EvaluationError(
        f"{record.variant} was not evaluated at guidance scale {guidance_scale:g}, only at {known}"
    )


def _tensors(store: Store, point: GuidancePoint) -> dict[str, torch.Tensor]:
    return load_file(store.path_of(point.images))


def _unlike(reference: EvaluationRecord, other: EvaluationRecord) -> str:
    keys = sorted({*reference.protocol, *other.protocol})
    unlike: Sequence[str] = [
        f"{key}: {reference.protocol.get(key)!r} and {other.protocol.get(key)!r}"
        for key in keys
        if reference.protocol.get(key) != other.protocol.get(key)
    ]
    return f"{reference.variant} and {other.variant} were not evaluated alike and cannot be compared ({'; '.join(unlike)})"
