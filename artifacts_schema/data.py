"""Record of the prepared data: captioned pictures, encoded once, in shards of bounded size."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen, Record, content_hash
from artifacts_schema.references import ObjectRef

SplitName = Literal["train", "validation", "test", "composition"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test", "composition")


class Shard(Frozen):
    """`rows` consecutive rows of one kind of tensor: a safetensors object with the single tensor "rows"."""

    object: ObjectRef
    rows: int = Field(ge=1)


class PreparedSplit(Frozen):
    """One split: row i of every kind belongs to caption i.

    `captions` is a JSON list of strings; `moments` rows are float32 (2*c, h, w), the encoder's mean and
    standard deviation, unscaled; `embeddings` rows are float32 (tokens, width); `images` rows are uint8
    (3, H, W). A split of captions alone (`composition`) has neither moments nor images.
    """

    size: int = Field(ge=0)
    captions: ObjectRef
    embeddings: tuple[Shard, ...]
    moments: tuple[Shard, ...] = ()
    images: tuple[Shard, ...] = ()

    @property
    def has_images(self) -> bool:
        """True when the split holds pictures."""
        return bool(self.images)

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        for name in ("embeddings", "moments", "images"):
            rows = sum(shard.rows for shard in getattr(self, name))
            if rows != self.size and not (rows == 0 and name != "embeddings"):
                raise ValueError(f"the split has {self.size} captions but {rows} rows of {name}")
        if bool(self.moments) != bool(self.images):
            raise ValueError("a split has both moments and images or neither")
        return self


class RawFile(Frozen):
    """One file that data were prepared from: its name without folders, the SHA-256 (hex) of its bytes, their number."""

    name: str
    sha256: str
    bytes: int


class RawData(Frozen):
    """What data were prepared from: the packages that hold and draw the embedded pictures, with their versions, or
    the user's own shards in order. Where the files lay does not matter.
    """

    packages: dict[str, str] = {}
    files: tuple[RawFile, ...] = ()

    def identity(self) -> str:
        """SHA-256 over all of it."""
        return content_hash(self.model_dump(mode="json"))


class PreparedDataRef(Record):
    """Left by the preparation of data inside `start`; `steps.data.prepared.PreparedData` reads it.

    `latent_shape` is (channels, height, width); `image_size` is in pixels; `skipped` counts left-out items by
    reason, out of `examined`; `attribution` is what a model trained on these pictures must say about them.
    """

    schema_name: ClassVar[str] = "snapfusion.prepared_data"
    schema_version: ClassVar[int] = 1

    stage: str = "start"
    source: str
    attribution: str = ""
    splits: dict[SplitName, PreparedSplit]
    empty_embedding: ObjectRef
    scaling_factor: float = Field(gt=0.0)
    latent_shape: tuple[int, int, int]
    image_size: int = Field(ge=1)
    examined: int = Field(ge=0)
    skipped: dict[str, int] = {}
