"""Records of how good the pictures of one variant are."""

from typing import Any, ClassVar

from artifacts_schema.base import Frozen, Interval, Measurement, Record, content_hash
from artifacts_schema.references import ObjectRef

TOO_FEW_PICTURES = 64


class GuidancePoint(Frozen):
    """Pictures at one guidance scale (1 for real ones).

    Distances are to the real pictures of the split, smaller is better; `clip_score` is the mean cosine of picture and
    caption, larger is better; `retrieval_top1` is the share of pictures whose own caption is the nearest among
    `retrieval_candidates`. `seed_diversity` is the mean distance of features between pictures of one caption over that
    between captions, None where each is drawn once. Intervals (95 %) know which pictures are of one group.
    """

    guidance_scale: float
    kernel_distance: Interval
    frechet_distance: float
    clip_score: Interval
    retrieval_top1: Interval
    retrieval_candidates: int
    seed_diversity: float | None = None
    images: (
        # safetensors: "features" (n, d), "clip" (n,), "caption" (n,), and "images" uint8 (k, 3, H, W), the first k of n
        ObjectRef
    )


class RealSplit(Frozen):
    """The real pictures of one split: the reference that distances are measured to, and what real ones themselves get.

    Where every caption has several pictures, half of them are the reference and the others `point`; else the captions
    are halved for `point`, and all are the reference. `captions` are those of the reference, `sha256` is over captions
    and pixels of all of them.
    """

    features: ObjectRef  # safetensors: "features" (m, d) of the reference
    captions: tuple[str, ...]
    point: GuidancePoint
    point_captions: tuple[str, ...]
    sha256: str


class RealPicturesRecord(Record):
    """Left by `real_pictures`: the splits' own pictures, which every variant is measured against.

    `validation` is scored by the evaluator that may guide decisions, `test` by the one that only measures.
    """

    schema_name: ClassVar[str] = "snapfusion.real_pictures"
    schema_version: ClassVar[int] = 1

    splits: dict[str, RealSplit]


class GuidanceRecord(Record):
    """Left by `guidance_selection` for one variant: its curve on the validation split, and the scale it is drawn at.

    A run with one scale draws no curve.
    """

    schema_name: ClassVar[str] = "snapfusion.guidance"
    schema_version: ClassVar[int] = 1

    variant: str
    guidance_scale: float
    points: tuple[GuidancePoint, ...] = ()
    captions: tuple[str, ...] = ()  # of the pictures of every point
    protocol: dict[str, Any]


class EvaluationRecord(Record):
    """Left by `evaluation` for one variant, at the guidance scale that was chosen for it.

    `protocol` is everything two records must share before they may be compared: captions and real pictures of the
    split, how many are drawn, from which noise, what measures them, and the hash of a frozen protocol. Neither the data a
    model was trained on nor the scales that were tried are part of it.
    """

    schema_name: ClassVar[str] = "snapfusion.evaluation"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "seconds_per_picture"})

    variant: str
    title: str
    sampler: str
    steps: int
    point: GuidancePoint
    real: RealSplit
    pictures: int
    captions: tuple[str, ...]  # of the pictures
    protocol: dict[str, Any]
    seconds_per_picture: Measurement | None = None
    apart: dict[str, GuidancePoint] = {}  # of `seen` and `novel` captions, where drawn; never a headline

    @property
    def protocol_hash(self) -> str:
        """Two records may be compared only when theirs are equal."""
        return content_hash(self.protocol)

    @property
    def is_smoke(self) -> bool:
        """True when there are too few pictures to say anything about quality."""
        return self.pictures < TOO_FEW_PICTURES


class VariantComparison(Frozen):
    """Two variants, each at its own guidance scale, on the same captions and noise.

    `distance_ratio` is other over reference (1 is equal, below 1 the other is better; None where the reference's
    distance is not above 0 by enough to divide by), differences are other minus reference, all paired. A verdict is
    only given where the 95 % interval excludes equality.
    """

    reference: str
    other: str
    reference_scale: float
    other_scale: float
    distance_difference: Interval
    distance_ratio: Interval | None
    clip_difference: Interval
    distance_verdict: str
    clip_verdict: str
