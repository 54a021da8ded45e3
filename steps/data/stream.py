"""Encoded shards as one long table of rows, of which only the shards in use are here; and the order to read them in.

An order is a function of the position in it: a training that goes on, and every rank of several, computes which rows are
its own and needs no state. docs/adr/0039-streamed-data.md
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from artifacts_schema.data import StreamedSplit
from steps.data.shard_cache import ShardCache
from steps.files.errors import ConfigError, DataError
from steps.store.base import Store
from steps.training.randomness import spawn

_FETCHED_AT_ONCE = 4
_GIB = 1 << 30


def check_room(store: Store, split: StreamedSplit) -> None:
    """Refuse a cache that does not hold the window that is read and the next one. Raises ConfigError."""
    most = store.cache_bytes
    largest = sorted((shard.object.bytes for shard in split.shards), reverse=True)[: 2 * split.window]
    if most is not None and sum(largest) > most:
        raise ConfigError(
            f"store.cache_gib is {most / _GIB:.3g}, but {len(largest)} encoded shards are needed at once, which have "
            f"{sum(largest) / _GIB:.3g} GiB: those that are shuffled together, and the next; raise it, or lower "
            "data.shuffle_shards"
        )


class ShardStream:
    """Rows of a split. Indices are int64 (n,), and count through all its shards.

    At most two windows are open; the next is fetched while one is read.
    """

    def __init__(self, cache: ShardCache, split: StreamedSplit) -> None:
        self._cache, self._split = cache, split
        rows = torch.tensor([shard.rows for shard in split.shards], dtype=torch.int64)
        self._ends = rows.cumsum(0)
        self._firsts = self._ends - rows
        self._open: OrderedDict[int, Future[Any]] = OrderedDict()
        self._turns = threading.Semaphore(_FETCHED_AT_ONCE)

    def take(self, kind: str, indices: Tensor) -> Tensor:
        """Rows at `indices` in that order, as they are stored. Raises StoreError for a shard that cannot be had."""
        size = self._split.size
        if size == 0:
            raise DataError("this split is empty")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise IndexError(
                f"expected indices in [0, {size}), found {int(indices.min())}..{int(indices.max())}"
            )
        owner = torch.bucketize(indices.contiguous(), self._ends, right=True)
        numbers = sorted(set(owner.tolist())) or [0]
        self.expect(numbers[: 2 * self._split.window])
        result: Tensor | None = None
        for number in numbers:
            rows = self._shard(number).get(kind)
            if rows is None:
                raise DataError(f"the encoded shards hold no {kind} of this split")
            if result is None:
                result = torch.empty((len(indices), *rows.shape[1:]), dtype=rows.dtype)
            mask = owner == number
            result[mask] = rows[indices[mask] - self._firsts[number]]
        return result if result is not None else torch.empty(0)

    def captions(self) -> list[str]:
        """Of every row, in order; reads every shard, so that it is for held-out splits."""
        total, found = len(self._split.shards), list[str]()
        for number in range(total):
            self.expect(range(number, min(total, number + self._split.window)))
            found += self._shard(number)["captions"]
        return found

    def expect(self, numbers: Iterable[int]) -> None:
        """Begin to fetch these shards, in that order."""
        for number in numbers:
            self._begin(number)

    def _shard(self, number: int) -> Any:
        try:
            return self._begin(number).result()
        except Exception:
            self._open.pop(number, None)  # asked for again, it is tried again
            raise

    def _begin(self, number: int) -> Future[Any]:
        if number not in self._open:
            future: Future[Any] = Future()
            self._open[number] = future
            # A daemon: nobody who stops a training waits for what it would have read.
            threading.Thread(target=self._fetch, args=(number, future), daemon=True).start()
            while len(self._open) > 2 * self._split.window:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _fetch(self, number: int, future: Future[Any]) -> None:
        try:
            shard = self._split.shards[number].object
            with self._turns, self._cache.holding(shard) as path, safe_open(path, framework="pt") as file:
                found = {kind: file.get_tensor(kind) for kind in file.keys()}  # noqa: SIM118 - no mapping
                captions = json.loads(file.metadata()["captions"])
            future.set_result({**found, "captions": captions})
        except BaseException as error:  # it is raised where the shard is needed
            future.set_exception(error)


class StreamOrder:
    """An endless stream of a split's epochs: shards in an order of their own, and the rows of `window` of them mixed."""

    def __init__(self, split: StreamedSplit, stream: Callable[[], ShardStream]) -> None:
        """`stream` gives what the rows are read from, which is told what comes next."""
        self._rows = tuple(shard.rows for shard in split.shards)
        self._window, self._stream = split.window, stream
        self.size = split.size

    def indices(self, *, start: int, count: int, seed: int) -> Tensor:
        """Row numbers at positions start .. start+count-1, int64 (count,); what comes next is fetched meanwhile."""
        parts: list[Tensor] = []
        while count > 0:
            epoch, offset = divmod(start, self.size)
            windows, ends = _windows(self._rows, self._window, seed, epoch)
            number = int(torch.bucketize(torch.tensor(offset), ends, right=True))
            mixed = _mixed(self._rows, windows[number], seed, epoch)
            part = mixed[offset - int(ends[number]) + len(mixed) :][:count]
            following = (
                windows[number + 1]
                if number + 1 < len(windows)
                else _windows(self._rows, self._window, seed, epoch + 1)[0][0]
            )
            self._stream().expect((*windows[number], *following))
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _generator(*names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(spawn(*names))  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def _windows(
    rows: tuple[int, ...], window: int, seed: int, epoch: int
) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """The shards of every window of an epoch, of sizes that differ by one at most, and where each window ends."""
    order = torch.randperm(len(rows), generator=_generator(seed, "shards", epoch))
    parts = [tuple(part.tolist()) for part in torch.tensor_split(order, -(-len(rows) // window))]
    return tuple(parts), torch.tensor([sum(rows[number] for number in part) for part in parts]).cumsum(0)


@lru_cache(maxsize=2)
def _mixed(rows: tuple[int, ...], shards: Sequence[int], seed: int, epoch: int) -> Tensor:
    """The row numbers of some shards, mixed."""
    firsts = torch.tensor([0, *rows]).cumsum(0)
    everything = torch.cat([torch.arange(int(firsts[n]), int(firsts[n + 1])) for n in shards])
    order = torch.randperm(len(everything), generator=_generator(seed, "window", epoch, *shards))
    return everything[order]
