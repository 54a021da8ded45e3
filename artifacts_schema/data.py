"""Record of the prepared data: captioned pictures, encoded once, in shards of bounded size."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen, Record, content_hash
from artifacts_schema.references import ObjectRef

SplitName = Literal["train", "validation", "test", "novel"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test", "novel")


class Shard(Frozen):
    """`rows` consecutive rows of one kind of tensor: a safetensors object with the single tensor "rows"."""

    object: ObjectRef
    rows: int = Field(ge=1)


class PreparedSplit(Frozen):
    """One split of `size` pictures; picture i has caption and embedding i // `variants`.

    `captions` is a JSON list of strings; `moments` rows are float32 (2*c, h, w), the encoder's mean and
    standard deviation, unscaled; `embeddings` rows are float32 (tokens, width); `images` rows are uint8
    (3, H, W).
    """

    size: int = Field(ge=0)
    variants: int = Field(default=1, ge=1)
    captions: ObjectRef
    embeddings: tuple[Shard, ...]
    moments: tuple[Shard, ...]
    images: tuple[Shard, ...]

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        expected = {"embeddings": self.size / self.variants, "moments": self.size, "images": self.size}
        for name, count in expected.items():
            rows = sum(shard.rows for shard in getattr(self, name))
            if rows != count:
                raise ValueError(
                    f"the split has {self.size} pictures, {self.variants} a caption, but {rows} rows of {name}"
                )
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
