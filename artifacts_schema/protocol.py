"""A frozen protocol: what is drawn, from which noise, and what measures it, with an identity of its own.

Neither the data that a model was trained on nor the guidance scales that were tried are part of it (docs/adr/0036).
"""

from collections import Counter
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen, Record

Part = Literal["held_out", "seen", "novel"]
"""Headlines are of `held_out`; `seen` (training captions of other categories) and `novel` are reported apart."""


class ProtocolPicture(Frozen):
    """A real picture: an OpenMoji code or the name of a file, its caption, and the SHA-256 (hex) of its pixels.

    Pixels are uint8 (3, H, W) of the protocol's `image_size`.
    """

    name: str
    caption: str = Field(min_length=1)
    sha256: str


class CalibrationPicture(Frozen):
    """What the instruments say of one real picture where the protocol was frozen.

    `clip_score` is the cosine with its caption, `retrieval_margin` that minus the highest one with another candidate,
    `kernel` the mean kernel with the reference pictures, `feature_distance` the mean square difference of features from
    the next calibration picture's.
    """

    name: str
    clip_score: float
    retrieval_margin: float
    kernel: float
    feature_distance: float


class ProtocolRecord(Record):
    """One protocol, as it lies in its file.

    `captions` are drawn in an order that follows from `noise_seed`, until there are `pictures`; with fewer no claim is
    made. `reference` are what distances are measured to; where it is empty, the held-out pictures themselves are.
    `features` names what distances are measured with, `features_sha256` its weights; `evaluator_sha256` is the identity of
    the evaluator's folder. What is drawn has `image_size`; with the source `coco` it may be larger, and is brought to that
    size before anything is measured (docs/adr/0040). An environment in which the score of a calibration picture is off by
    more than `tolerance` (of the largest of its kind) is refused.
    """

    schema_name: ClassVar[str] = "snapfusion.protocol"
    schema_version: ClassVar[int] = 1

    stage: str = "protocol"
    name: str
    role: Literal["validation", "test"]
    subject: str
    source: Literal["openmoji", "folder", "coco"]
    image_size: int = Field(ge=1)
    captions: tuple[str, ...]
    noise_seed: int
    pictures: int = Field(ge=1)
    sampler: str
    retrieval: tuple[str, ...]
    features: str
    features_sha256: str
    evaluator_sha256: str
    real: tuple[ProtocolPicture, ...]
    reference: tuple[ProtocolPicture, ...] = ()
    seen: tuple[ProtocolPicture, ...] = ()
    novel: tuple[ProtocolPicture, ...] = ()
    calibration: tuple[CalibrationPicture, ...]
    tolerance: float = Field(gt=0.0)

    def why_not_drawn_at(self, size: int) -> str:
        """What is wrong with pictures that are drawn with sides of `size`; empty if nothing is."""
        if size == self.image_size or (self.source == "coco" and size > self.image_size):
            return ""
        return (
            f"{self.name} is of pictures of {self.image_size} pixels a side, the base draws {size}; freeze protocols of "
            "that size"
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = Counter(self.captions)
        twice = sorted(text for text, count in known.items() if count > 1)
        if twice:
            raise ValueError(f"captions must differ; more than once: {', '.join(twice[:5])}")
        drawn = {picture.caption for picture in self.real}
        if missing := [text for text in self.captions if text not in drawn]:
            raise ValueError(f"every caption needs a real picture; without: {', '.join(missing[:5])}")
        if strangers := [text for text in self.retrieval if text not in known]:
            raise ValueError(f"retrieval must be among the captions; not there: {', '.join(strangers[:5])}")
        return self
