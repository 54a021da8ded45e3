"""References to stored bytes: what Metaflow artifacts carry instead of tensors."""

from typing import Literal

from artifacts_schema.base import Frozen, content_hash


class ObjectRef(Frozen):
    """One stored object: where it is, the SHA-256 (hex) of its bytes, and how many bytes it has."""

    uri: str
    sha256: str
    bytes: int


class FolderRef(Frozen):
    """A stored folder: relative POSIX path to object."""

    files: dict[str, ObjectRef]

    def identity(self) -> str:
        """SHA-256 over paths and content hashes; the place of storage does not matter."""
        return content_hash({path: ref.sha256 for path, ref in self.files.items()})

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(ref.bytes for ref in self.files.values())


class WeightsRef(ObjectRef):
    """Weights of one model: a safetensors object plus the JSON config its class is built from.

    `schema_id` names the class, e.g. `diffusers.UNet2DConditionModel` or `snapfusion.EvolvedUNet`.
    """

    format: Literal["safetensors"] = "safetensors"
    schema_id: str
    config: ObjectRef
    parents: tuple[str, ...] = ()

    def identity(self) -> str:
        """SHA-256 over class, config and weights."""
        return content_hash({"schema": self.schema_id, "config": self.config.sha256, "weights": self.sha256})
