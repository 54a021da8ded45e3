"""Data prepared once: encoder moments, text embeddings and pictures in the store, in shards of bounded size.

The VAE's and the text encoder's work does not depend on the training, so it is done once. What is cached of
a picture are the moments of its latent distribution, not one sample of it: a new sample is drawn at every
read, with noise keyed by seed, iteration and sample index.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from artifacts_schema.data import SPLIT_NAMES, PreparedDataRef, PreparedSplit, Shard, SplitName
from artifacts_schema.run_configs import DataConfig
from steps.data.source import OpenMojiSource, Picture, Source
from steps.data.webdataset import WebDatasetSource
from steps.files.errors import DataError
from steps.files.progress import Progress
from steps.models.base import BaseModel, encode_captions
from steps.store.base import Store, get_bytes
from steps.training.randomness import keyed_normal, keyed_uniform

logger = logging.getLogger(__name__)
NEEDED_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SHARD_BYTES = 64 << 20
_BATCH = 64
_ENCODED_PIXELS = (
    1 << 21
)  # pictures encoded together have at most so many pixels: 8 of 512 x 512 take some 4 GB
_ENCODED_TOGETHER = 16  # on a CPU more at once leave its cache: 64 take 1.4 times as long a picture


def prepare_data(
    base: BaseModel, config: DataConfig, store: Store, *, progress: Progress, project_root: Path
) -> PreparedDataRef:
    """Encode the configured pictures and captions, see `source_of` and `prepare_source`."""
    return prepare_source(base, source_of(base, config, project_root), store, progress=progress)


def source_of(base: BaseModel, config: DataConfig, project_root: Path) -> Source:
    """The configured pictures, indexed but not read. Raises DataError for unusable shards."""
    size = config.image_size or base.image_size
    if config.source == "openmoji":
        return OpenMojiSource(size, config.limit, config.variants)
    return WebDatasetSource(config, project_root, size)


def prepare_source(base: BaseModel, source: Source, store: Store, *, progress: Progress) -> PreparedDataRef:
    """Encode everything `source` yields with the base's own encoders, on the device these are on.

    Raises DataError for too many unusable items and for a split without pictures.
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
    _check_splits(splits, source)
    empty = encode_captions(base.tokenizer, base.text_encoder, [""])
    return PreparedDataRef(
        source=source.name,
        attribution=source.attribution,
        splits=splits,
        empty_embedding=store.put_bytes(save({"rows": empty.contiguous()})),
        scaling_factor=base.scaling_factor,
        latent_shape=base.latent_shape,
        image_size=base.image_size,
        examined=source.total,
        skipped=dict(source.skipped),
    )


def _check_splits(splits: dict[SplitName, PreparedSplit], source: Source) -> None:
    sizes = {name: split.size for name, split in splits.items()}
    if source.skipped:
        logger.warning("%s: skipped %s of %d items", source.name, dict(source.skipped), source.total)
    logger.info("%s: %s", source.name, sizes)
    empty = [name for name in NEEDED_SPLITS if sizes[name] == 0]
    if empty:
        raise DataError(
            f"expected pictures in every split, found {sizes} from {source.total} items; the split follows "
            "from a hash of the caption: give some hundred pictures with other captions, or raise data.limit"
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
        captions = json.dumps(self._captions, ensure_ascii=False).encode()
        return PreparedSplit(
            size=self._size,
            variants=self._variants,
            captions=self._store.put_bytes(captions),
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


@torch.no_grad()
def encode_moments(base: BaseModel, images: Tensor) -> Tensor:
    """Mean and standard deviation of the unscaled latents: float32 (n, 2*c, h, w).

    `images` are uint8 (n, 3, H, W) of the base's size.
    """
    together = max(1, min(_ENCODED_TOGETHER, _ENCODED_PIXELS // (images.shape[-2] * images.shape[-1])))
    parts = []
    for part in torch.split(images, together):
        pixels = part.to(base.vae.device, torch.float32) / 127.5 - 1.0
        distribution = base.vae.encode(pixels).latent_dist
        parts.append(torch.cat([distribution.mean, distribution.std], dim=1).float().cpu())
    return torch.cat(parts)


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


class _Rows:
    """The rows of several shards, memory-mapped on first use; every object's hash is verified then."""

    def __init__(self, store: Store, shards: Sequence[Shard]) -> None:
        self._store = store
        self._shards = shards
        self._open: dict[int, Tensor] = {}
        ends = torch.tensor([shard.rows for shard in shards], dtype=torch.int64).cumsum(0)
        self._ends = ends
        self.size = int(ends[-1]) if shards else 0

    def take(self, indices: Tensor) -> Tensor:
        """Rows at `indices` (n,) in that order."""
        if self.size == 0:
            raise DataError("this split is empty")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.size:
            raise IndexError(
                f"expected indices in [0, {self.size}), found {int(indices.min())}..{int(indices.max())}"
            )
        first = self._shard(0)
        result = torch.empty((len(indices), *first.shape[1:]), dtype=first.dtype)
        owner = torch.bucketize(indices, self._ends, right=True)
        for number in sorted(set(owner.tolist())):
            mask = owner == number
            offset = int(self._ends[number]) - self._shards[number].rows
            result[mask] = self._shard(number)[indices[mask] - offset]
        return result

    def _shard(self, number: int) -> Tensor:
        if number not in self._open:
            path = self._store.path_of(self._shards[number].object)
            with safe_open(path, framework="pt") as file:
                self._open[number] = file.get_tensor("rows")
        return self._open[number]


class PreparedData:
    """Prepared data for reading. Indices are int64 (n,) on the CPU, and so is everything that comes back."""

    def __init__(self, store: Store, ref: PreparedDataRef) -> None:
        self.ref = ref
        self._store = store
        self._captions: dict[str, list[str]] = {}
        self._rows: dict[tuple[str, str], _Rows] = {}
        self._empty = load(get_bytes(store, ref.empty_embedding))["rows"]

    @classmethod
    def load(cls, store: Store, ref: PreparedDataRef) -> "PreparedData":
        """Open prepared data; shards are read when they are first needed."""
        return cls(store, ref)

    @property
    def empty_embedding(self) -> Tensor:
        """Text embedding of the empty caption, float32 (1, tokens, width)."""
        return self._empty

    @property
    def scaling_factor(self) -> float:
        """Latents are the encoder's output times this factor."""
        return self.ref.scaling_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        return self.ref.latent_shape

    def size(self, split: str) -> int:
        """Number of pictures; 0 for a split that is not there."""
        return found.size if (found := self._split(split)) else 0

    def captions(self, split: str) -> list[str]:
        """The caption of every picture of a split; variants of a picture share theirs."""
        if split not in self._captions:
            found = self._split(split)
            names = json.loads(get_bytes(self._store, found.captions)) if found else []
            self._captions[split] = [name for name in names for _ in range(found.variants if found else 1)]
        return list(self._captions[split])

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        """Text embeddings, float32 (n, tokens, width)."""
        found = self._split(split)
        return self._take(split, "embeddings", indices // (found.variants if found else 1))

    def images(self, split: str, indices: Tensor) -> Tensor:
        """Pictures as prepared, uint8 (n, 3, H, W)."""
        return self._take(split, "images", indices)

    def latents(self, split: str, indices: Tensor, *, seed: int, iteration: int) -> Tensor:
        """Latents (n, c, h, w) of about unit variance: (mean + std * keyed noise) * scaling_factor."""
        mean, std = self._take(split, "moments", indices).chunk(2, dim=1)
        noise = keyed_normal(
            tuple(mean.shape[1:]), seed=seed, name="vae", iteration=iteration, indices=indices
        )
        return (mean + std * noise) * self.scaling_factor

    def training_embeddings(
        self, split: str, indices: Tensor, *, seed: int, iteration: int, drop_probability: float
    ) -> Tensor:
        """Text embeddings in which each caption gives way to the empty one with `drop_probability`.

        This is what makes guidance possible: the network learns the unconditional prediction, too.
        """
        draws = keyed_uniform(
            0.0, 1.0, seed=seed, name="caption_dropout", iteration=iteration, indices=indices
        )
        dropped = (draws < drop_probability)[:, None, None]
        return torch.where(dropped, self.empty_embedding, self.embeddings(split, indices))

    def _split(self, name: str) -> PreparedSplit | None:
        if name not in SPLIT_NAMES:
            raise DataError(f"expected a split out of {', '.join(SPLIT_NAMES)}, found {name!r}")
        return next((split for known, split in self.ref.splits.items() if known == name), None)

    def _take(self, split: str, kind: str, indices: Tensor) -> Tensor:
        if (split, kind) not in self._rows:
            found = self._split(split)
            self._rows[split, kind] = _Rows(self._store, getattr(found, kind) if found else ())
        return self._rows[split, kind].take(indices)
