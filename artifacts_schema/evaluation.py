"""Records of how good the pictures of one variant are."""

from typing import Any, ClassVar

from artifacts_schema.base import Frozen, Interval, Measurement, Record, content_hash
from artifacts_schema.references import ObjectRef

TOO_FEW_PICTURES = 64


class GuidancePoint(Frozen):
    """One variant at one guidance scale.

    Distances are to the real pictures of the split, smaller is better; `clip_score` is the mean cosine of picture and
    caption by the measuring evaluator, larger is better; `retrieval_top1` is the share of pictures whose own caption is
    the nearest among `retrieval_candidates`.
    """

    guidance_scale: float
    kernel_distance: Interval
    frechet_distance: float
    clip_score: Interval
    retrieval_top1: Interval
    retrieval_candidates: int
    images: (
        # safetensors: "features" (n, d), "clip" (n,), "caption" (n,), and "images" uint8 (k, 3, H, W), the first k of n
        ObjectRef
    )


class RealPicturesRecord(Record):
    """Left by `real_pictures`: the split's own pictures, which every variant is measured against.

    `point` is how real pictures of the evaluated captions do beside real pictures of the train split.
    """

    schema_name: ClassVar[str] = "snapfusion.real_pictures"
    schema_version: ClassVar[int] = 2

    point: GuidancePoint
    features: ObjectRef  # safetensors: "features" (pictures of the split, d)
    protocol: dict[str, Any]


class EvaluationRecord(Record):
    """Left by `evaluation` for one variant.

    `protocol` is everything two records must share before they may be compared: split, pictures, features, evaluator,
    data, seed. `real` is the same measurement of real pictures against other real pictures, at the same n.
    """

    schema_name: ClassVar[str] = "snapfusion.evaluation"
    schema_version: ClassVar[int] = 2
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "seconds_per_picture"})

    variant: str
    title: str
    sampler: str
    steps: int
    points: tuple[GuidancePoint, ...]
    real: GuidancePoint
    pictures: int
    captions: tuple[str, ...]  # of the pictures; in version 1 of those in the grid
    protocol: dict[str, Any]
    seconds_per_picture: Measurement | None = None

    @property
    def protocol_hash(self) -> str:
        """Two records may be compared only when theirs are equal."""
        return content_hash(self.protocol)

    @property
    def is_smoke(self) -> bool:
        """True when there are too few pictures to say anything about quality."""
        return self.pictures < TOO_FEW_PICTURES


class VariantComparison(Frozen):
    """Two variants at one guidance scale, on the same captions and noise.

    `distance_ratio` is other over reference (1 is equal, below 1 the other is better), `clip_difference` other minus
    reference (paired). A verdict is only given where the 95 % interval excludes equality.
    """

    reference: str
    other: str
    guidance_scale: float
    distance_difference: Interval
    clip_difference: Interval
    distance_verdict: str
    clip_verdict: str
