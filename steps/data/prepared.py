"""Prepared data for reading, see `steps.data.preparing`.

Rows are found by their index. Those of the included pictures are all here; those of the user's shards are read through a
bounded cache, so that a training takes them in the order that `PreparedData.order` gives.
"""

import json
from collections.abc import Sequence
from functools import partial

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from artifacts_schema.data import SPLIT_NAMES, PreparedDataRef, PreparedSplit, Shard, StreamedSplit
from steps.data.shard_cache import ShardCache
from steps.data.stream import ShardStream, StreamOrder, check_room
from steps.files.errors import DataError
from steps.store.base import Store, get_bytes
from steps.training.randomness import Samples, keyed_normal, keyed_uniform


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
        owner = torch.bucketize(indices.contiguous(), self._ends, right=True)
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
    """Prepared data for reading. Indices are int64 (n,) on the CPU, and so is everything that comes back.

    What is read stays with this process: another one that it goes to begins anew.
    """

    def __init__(self, store: Store, ref: PreparedDataRef) -> None:
        self.ref = ref
        self._store = store
        self._captions: dict[str, list[str]] = {}
        self._rows: dict[tuple[str, str], _Rows] = {}
        self._streams: dict[str, ShardStream] = {}
        streamed = [split for split in ref.splits.values() if isinstance(split, StreamedSplit)]
        for split in streamed:
            check_room(store, split)
        self._cache = ShardCache(store, [shard.object for split in streamed for shard in split.shards])
        self._empty = load(get_bytes(store, ref.empty_embedding))["rows"]

    def __reduce__(self) -> tuple[type["PreparedData"], tuple[Store, PreparedDataRef]]:
        return PreparedData, (self._store, self.ref)

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

    def order(self, split: str) -> Samples:
        """What a training goes through: all pictures in any order, or the user's shards, some at a time."""
        found = self._split(split)
        return (
            StreamOrder(found, partial(self._stream, split))
            if isinstance(found, StreamedSplit)
            else self.size(split)
        )

    def captions(self, split: str) -> list[str]:
        """The caption of every picture of a split; variants of a picture share theirs. Of the train split of the user's shards
        each one is read for that.
        """
        if split not in self._captions:
            found = self._split(split)
            if found is None or found.captions is None:
                self._captions[split] = self._stream(split).captions() if found else []
            else:
                names = json.loads(get_bytes(self._store, found.captions))
                self._captions[split] = [name for name in names for _ in range(found.variants)]
        return list(self._captions[split])

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        """Text embeddings, float32 (n, tokens, width)."""
        found = self._split(split)
        return self._take(split, "embeddings", indices // (found.variants if found else 1)).float()

    def images(self, split: str, indices: Tensor) -> Tensor:
        """Pictures as prepared, uint8 (n, 3, H, W); of the user's shards those of held-out splits are kept."""
        return self._take(split, "images", indices)

    def latents(self, split: str, indices: Tensor, *, seed: int, iteration: int) -> Tensor:
        """Latents (n, c, h, w) of about unit variance: (mean + std * keyed noise) * scaling_factor."""
        mean, std = self._take(split, "moments", indices).float().chunk(2, dim=1)
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

    def _split(self, name: str) -> PreparedSplit | StreamedSplit | None:
        if name not in SPLIT_NAMES:
            raise DataError(f"expected a split out of {', '.join(SPLIT_NAMES)}, found {name!r}")
        return next((split for known, split in self.ref.splits.items() if known == name), None)

    def _stream(self, split: str) -> ShardStream:
        if split not in self._streams:
            found = self._split(split)
            assert isinstance(found, StreamedSplit)  # noqa: S101 - who calls this has asked
            self._streams[split] = ShardStream(self._cache, found)
        return self._streams[split]

    def _take(self, split: str, kind: str, indices: Tensor) -> Tensor:
        if isinstance(self._split(split), StreamedSplit):
            return self._stream(split).take(kind, indices)
        if (split, kind) not in self._rows:
            found = self._split(split)
            self._rows[split, kind] = _Rows(self._store, getattr(found, kind) if found else ())
        return self._rows[split, kind].take(indices)
