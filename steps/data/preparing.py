"""Data prepared once: the included pictures as rows of bounded objects, the user's shards as an object each.

The VAE's and the text encoder's work does not depend on the training, so it is done once. What is cached of
a picture are the moments of its latent distribution, not one sample of it: a new sample is drawn at every
read, with noise keyed by seed, iteration and sample index.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from artifacts_schema.data import (
    SPLIT_NAMES,
    EncodedShard,
    PreparedDataRef,
    PreparedSplit,
    Shard,
    SplitName,
    StreamedSplit,
)
from artifacts_schema.references import ObjectRef
from artifacts_schema.run_configs import DataConfig
from steps.data.encoding import encode_moments
from steps.data.source import OpenMojiSource, Picture, Source
from steps.data.stream import check_room
from steps.files.errors import DataError
from steps.files.progress import Progress
from steps.models.base import BaseModel, encode_captions
from steps.store.base import Store

logger = logging.getLogger(__name__)
NEEDED_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SHARD_BYTES = 64 << 20
_BATCH = 64


def prepare_data(base: BaseModel, config: DataConfig, store: Store, *, progress: Progress) -> PreparedDataRef:
    """Encode the included pictures, see `prepare_source`."""
    return prepare_source(base, included_source(base, config), store, progress=progress)


def included_source(base: BaseModel, config: DataConfig) -> OpenMojiSource:
    """The included pictures as the configuration wants them, not drawn yet."""
    return OpenMojiSource(config.image_size or base.image_size, config.limit, config.variants)


def prepare_source(base: BaseModel, source: Source, store: Store, *, progress: Progress) -> PreparedDataRef:
    """Encode everything `source` yields with the base's own encoders, on the device these are on.

    Raises DataError for a split without pictures.
    """
    writers: dict[SplitName, _SplitWriter] = {
        name: _SplitWriter(base, store, source.variants) for name in SPLIT_NAMES
    }
    progress.start(f"preparing {source.name}", source.total)
    for done, picture in enumerate(source.pictures(), start=1):
        writers[picture.split].add(picture)
        if done % _BATCH == 0:
            progress.update(done)
    splits = {name: writer.finish() for name, writer in writers.items()}
    progress.update(source.total)
    progress.close()
    _check_splits(splits, f"{source.total} items")
    return _ref(
        base, store, splits, source=source.name, attribution=source.attribution, examined=source.total
    )


def prepare_shards(
    base: BaseModel, found: Sequence[EncodedShard], config: DataConfig, store: Store
) -> PreparedDataRef:
    """The user's shards, once all are encoded (`steps.data.workers`).

    Raises DataError for a split without pictures, ConfigError for a cache that is too small to read them.
    """
    splits = {
        name: StreamedSplit(
            shards=tuple(item.splits[name] for item in found if name in item.splits),
            captions=None
            if name == "train"
            else _stored([text for item in found for text in item.captions.get(name, ())], store),
            window=config.shuffle_shards,
        )
        for name in NEEDED_SPLITS
    }
    skipped = _sum(item.skipped for item in found) | (
        {"unreadable_shard": bad} if (bad := sum(bool(item.problem) for item in found)) else {}
    )
    filtered, enlarged = _sum(item.filtered for item in found), sum(item.enlarged for item in found)
    examined = sum(item.examined for item in found)
    logger.info("skipped %s, filtered %s, of %d samples", skipped, filtered, examined)
    if enlarged:
        side = config.image_size or base.image_size
        logger.warning(
            "%d pictures were smaller than %d and have been enlarged; data.filters can leave them out: "
            "'width >= %d', 'height >= %d'", enlarged, side, side, side,
        )  # fmt: skip
    left_out = f"; filters left out {filtered}" if filtered else ""
    _check_splits(splits, f"{examined} samples of {len(found)} shards{left_out}")
    for split in splits.values():
        check_room(store, split)
    counts = {"examined": examined, "skipped": skipped, "filtered": filtered}
    return _ref(base, store, splits, source="webdataset", **counts)


def _stored(captions: Sequence[str], store: Store) -> ObjectRef:
    return store.put_bytes(json.dumps(captions, ensure_ascii=False).encode())


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter[str]()).items()))


def _ref(base: BaseModel, store: Store, splits: Mapping[SplitName, Any], **more: Any) -> PreparedDataRef:
    empty = encode_captions(base.tokenizer, base.text_encoder, [""])
    return PreparedDataRef(
        splits=splits,
        empty_embedding=store.put_bytes(save({"rows": empty.contiguous()})),
        scaling_factor=base.scaling_factor,
        latent_shape=base.latent_shape,
        image_size=base.image_size,
        **more,
    )


def _check_splits(splits: Mapping[SplitName, PreparedSplit | StreamedSplit], of: str) -> None:
    sizes = {name: split.size for name, split in splits.items()}
    logger.info("pictures: %s", sizes)
    empty = [name for name in NEEDED_SPLITS if sizes[name] == 0]
    if empty:
        raise DataError(
            f"expected pictures in every split, found {sizes} from {of}; the split follows from a hash of the caption: "
            "give some hundred pictures with other captions, or raise data.limit or data.held_out_fraction"
        )


class _SplitWriter:
    """Encodes the rows of one split in batches and stores them in shards."""

    def __init__(self, base: BaseModel, store: Store, variants: int) -> None:
        self._base = base
        self._store = store
        self._variants = variants
        self._size = 0
        self._captions: list[str] = []
        self._waiting: list[Picture] = []
        self._embeddings = _ShardWriter(store)
        self._moments = _ShardWriter(store)
        self._images = _ShardWriter(store)

    def add(self, picture: Picture) -> None:
        self._waiting.append(picture)
        if len(self._waiting) == _BATCH:
            self._encode()

    def finish(self) -> PreparedSplit:
        if self._waiting:
            self._encode()
        return PreparedSplit(
            size=self._size,
            variants=self._variants,
            captions=_stored(self._captions, self._store),
            embeddings=self._embeddings.finish(),
            moments=self._moments.finish(),
            images=self._images.finish(),
        )

    def _encode(self) -> None:
        images = torch.stack([picture.image for picture in self._waiting])
        self._images.add(images)
        self._moments.add(encode_moments(self._base, images))
        first = -self._size % self._variants  # of the waiting ones, that begins a caption
        captions = [picture.caption for picture in self._waiting[first :: self._variants]]
        if captions:
            self._embeddings.add(encode_captions(self._base.tokenizer, self._base.text_encoder, captions))
        self._captions += captions
        self._size += len(self._waiting)
        self._waiting = []


class _ShardWriter:
    """Collects rows and stores them as objects of about SHARD_BYTES, however many there are."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: list[Tensor] = []
        self._bytes = 0
        self._shards: list[Shard] = []

    def add(self, rows: Tensor) -> None:
        self._parts.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= SHARD_BYTES:
            self._flush()

    def finish(self) -> tuple[Shard, ...]:
        if self._parts:
            self._flush()
        return tuple(self._shards)

    def _flush(self) -> None:
        rows = torch.cat(self._parts).contiguous()
        self._shards.append(Shard(object=self._store.put_bytes(save({"rows": rows})), rows=len(rows)))
        self._parts, self._bytes = [], 0
