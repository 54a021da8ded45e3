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


class StreamedSplit(Frozen):
    """One split of the user's shards, each encoded into objects of its own, in the order of the shards.

    An object is a safetensors file: bfloat16 `moments` (n, 2*c, h, w), mean and standard deviation of the unscaled
    latents; bfloat16 `embeddings` (n, tokens, width); of held-out splits uint8 `images` (n, 3, H, W); and as metadata
    `captions`, a JSON list. `captions` is one of all rows, so that held-out captions are known without the pictures. Rows of
    `window` shards are shuffled among each other.
    """

    shards: tuple[Shard, ...]
    captions: ObjectRef | None = None
    window: int = Field(ge=1)

    @property
    def size(self) -> int:
        """Number of pictures."""
        return sum(shard.rows for shard in self.shards)

    @property
    def variants(self) -> int:
        """As of PreparedSplit: every picture has a caption of its own."""
        return 1


class EncodedShard(Frozen):
    """What one of the user's shards has become: an object for each split that it has pictures of.

    `captions` are those of held-out splits. `skipped` counts unusable samples by reason, `filtered` those that a filter left
    out, out of `examined`; `enlarged` are pictures smaller than what the base draws. `problem` says why a shard could not be
    read at all.
    """

    splits: dict[SplitName, Shard] = {}
    captions: dict[SplitName, tuple[str, ...]] = {}
    examined: int = Field(default=0, ge=0)
    skipped: dict[str, int] = {}
    filtered: dict[str, int] = {}
    enlarged: int = Field(default=0, ge=0)
    problem: str = ""


class RawFile(Frozen):
    """One file that data were prepared from: its name without folders, the SHA-256 (hex) of its bytes, their number.

    Of a remote file it is the SHA-256 of what the server says of it (`steps.data.places`): nobody has read it for that.
    """

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
    reason, out of `examined`, `filtered` those that filters left out; `attribution` is what a model trained on these
    pictures must say about them.
    """

    schema_name: ClassVar[str] = "snapfusion.prepared_data"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "filtered"})

    stage: str = "start"
    source: str
    attribution: str = ""
    splits: dict[SplitName, PreparedSplit | StreamedSplit]
    empty_embedding: ObjectRef
    scaling_factor: float = Field(gt=0.0)
    latent_shape: tuple[int, int, int]
    image_size: int = Field(ge=1)
    examined: int = Field(ge=0)
    skipped: dict[str, int] = {}
    filtered: dict[str, int] = {}
