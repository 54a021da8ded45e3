"""Shards with tiny pictures, and encoding them."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from artifacts_schema.data import EncodedShard
from artifacts_schema.references import FolderRef, ObjectRef
from artifacts_schema.run_configs import DataConfig, StoreConfig
from steps.data.workers import Job, ShardEncoder, jobs_of
from steps.files.hashes import FileHashes
from steps.files.progress import NullProgress
from steps.inputs.folders import raw_data
from steps.store import LocalStore, Store
from tests.factories import encoding_base

Member = tuple[str, bytes]
BASE = encoding_base()
STORED = FolderRef(files={"vae/config.json": ObjectRef(uri="sha256:a", sha256="a", bytes=1)})


def encoded(size: tuple[int, int] = (8, 8), kind: str = "PNG", color: object = (255, 0, 0)) -> bytes:
    """The bytes of a picture of one colour."""
    file = io.BytesIO()
    mode = "RGBA" if isinstance(color, tuple) and len(color) == 4 else "RGB"
    Image.new(mode, size, color).save(file, kind)  # type: ignore[arg-type]
    return file.getvalue()


def write(path: Path, members: Iterable[Member]) -> Path:
    """A tar file."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(count: int, start: int = 0) -> list[Member]:
    """Pictures with the captions "caption number <i>"."""
    members: list[Member] = []
    for i in range(start, start + count):
        members += [(f"{i:05d}.png", encoded()), (f"{i:05d}.txt", f"caption number {i}".encode())]
    return members


def config_of(shards: Sequence[str], **config: Any) -> DataConfig:
    """Of shards."""
    return DataConfig(source="webdataset", shards=tuple(shards), **config)


def jobs(root: Path, config: DataConfig, access: StoreConfig | None = None) -> list[Job]:
    """One a shard."""
    raw = raw_data(config, root, FileHashes(root / "hashes"), access)
    return jobs_of(config, root, raw, STORED, size=BASE.image_size)


def encode(
    root: Path,
    shards: Sequence[str] = ("a.tar",),
    *,
    store: Store | None = None,
    access: StoreConfig | None = None,
    **config: Any,
) -> list[EncodedShard]:
    """What becomes of shards below `root`, in a store there unless another is given."""
    made, access = config_of(shards, **config), access or StoreConfig()
    encoder = ShardEncoder(BASE, made, store or LocalStore(root / "store"), work=root / "work", access=access)
    return encoder.run(jobs(root, made, access), NullProgress())
