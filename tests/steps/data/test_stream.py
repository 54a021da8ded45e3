"""Encoded shards as a stream: every row once an epoch whoever reads, exact positions, and bounded disk and memory."""

import json
import pickle
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from artifacts_schema.data import PreparedDataRef, Shard, StreamedSplit
from artifacts_schema.stage_configs import TrainingConfig
from steps.data.prepared import PreparedData
from steps.data.shard_cache import ShardCache
from steps.data.stream import ShardStream, StreamOrder
from steps.files.errors import ConfigError, DiskFullError, Interrupted, StoreError
from steps.store import LocalStore, Store
from steps.store.local import LocalStore as Local
from steps.store.s3 import S3Store
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.randomness import epoch_indices
from tests.conftest import MakeS3
from tests.steps.training.test_loop import StopAfter

ROWS = (3, 5, 1, 4, 2, 6)


def shards(store: Store, rows: tuple[int, ...] = ROWS) -> tuple[Shard, ...]:
    """Row i of all has moments of the constant i (mean) and 0 (deviation)."""
    made, first = [], 0
    for count in rows:
        mean = torch.arange(first, first + count).bfloat16().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        tensors = {
            "moments": torch.cat([mean, torch.zeros_like(mean)], dim=1).contiguous(),
            "embeddings": torch.full((count, 3, 4), 0.5, dtype=torch.bfloat16),
        }
        captions = [f"caption {number}" for number in range(first, first + count)]
        made.append(
            Shard(object=store.put_bytes(save(tensors, {"captions": json.dumps(captions)})), rows=count)
        )
        first += count
    return tuple(made)


def reference(store: Store, split: StreamedSplit) -> PreparedDataRef:
    empty = store.put_bytes(save({"rows": torch.zeros(1, 3, 4)}))
    return PreparedDataRef(
        source="webdataset", splits={"train": split, "validation": split}, empty_embedding=empty, scaling_factor=1.0,
        latent_shape=(1, 2, 2), image_size=4, examined=split.size,
    )  # fmt: skip


def prepared(store: Store, rows: tuple[int, ...] = ROWS, window: int = 2) -> PreparedData:
    return PreparedData.load(
        store, reference(store, StreamedSplit(shards=shards(store, rows), window=window))
    )


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def positions(data: PreparedData, start: int, count: int, seed: int = 1) -> list[int]:
    found = epoch_indices(samples=data.order("train"), start=start, count=count, seed=seed)
    return [int(index) for index in found]


def test_rows_are_read_by_their_index(local: LocalStore) -> None:
    data = prepared(local)
    indices = torch.tensor([20, 0, 8, 3, 20])
    latents = data.latents("train", indices, seed=0, iteration=0)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, indices.float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2))
    assert torch.equal(data.embeddings("train", indices), torch.full((5, 3, 4), 0.5))
    assert data.captions("validation") == [f"caption {number}" for number in range(21)]
    with pytest.raises(IndexError, match=r"\[0, 21\), found 21"):
        data.embeddings("train", torch.tensor([21]))
    assert data.embeddings("train", torch.tensor([], dtype=torch.int64)).shape == (0, 3, 4)


@pytest.mark.parametrize("window", [1, 2, 4, 99])
def test_an_epoch_has_every_row_once_and_another_order_than_the_next(local: LocalStore, window: int) -> None:
    data = prepared(local, window=window)
    epochs = [positions(data, 21 * number, 21) for number in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(21))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert positions(data, 0, 21, seed=2) != epochs[0]


def test_a_position_does_not_depend_on_how_one_came_there(local: LocalStore) -> None:
    whole = positions(prepared(local), 0, 100)
    data = prepared(local)
    for start, count in ((0, 7), (7, 1), (8, 30), (38, 62)):
        assert positions(data, start, count) == whole[start : start + count]
    assert positions(prepared(local), 55, 9) == whole[55:64]


def test_rows_of_a_window_are_mixed_and_those_of_others_are_not_needed(local: LocalStore) -> None:
    owner = [number for number, count in enumerate((10,) * 8) for _ in range(count)]
    data = prepared(local, (10,) * 8, window=2)
    epochs: list[list[set[int]]] = []
    for first in (0, 80):
        near = [[owner[i] for i in positions(data, start, 20)] for start in range(first, first + 80, 20)]
        assert all(numbers != sorted(numbers) for numbers in near)
        epochs.append([set(numbers) for numbers in near])
    assert [len(numbers) for epoch in epochs for numbers in epoch] == [2] * 8
    assert epochs[0] != epochs[1]  # other shards lie together


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_rows_without_gaps_however_few_the_shards(local: LocalStore, ranks: int) -> None:
    """As `Stepper.batch` shares a batch: seven ranks and two shards, too."""
    data = prepared(local, (10, 11), window=1)
    seen: list[int] = []
    for start in range(0, 21, 7):
        batch = epoch_indices(samples=data.order("train"), start=start, count=7, seed=3)
        seen += [int(index) for rank in range(ranks) for index in batch[rank::ranks]]
    assert sorted(seen) == list(range(21))


def test_a_process_that_data_go_to_begins_anew_and_reads_what_it_is_told(local: LocalStore) -> None:
    data = prepared(local)
    order = data.order("train")
    before = epoch_indices(samples=order, start=0, count=4, seed=1)
    copy, copied = pickle.loads(pickle.dumps((data, order)))  # noqa: S301
    assert torch.equal(epoch_indices(samples=copied, start=0, count=4, seed=1), before)
    assert copy._streams["train"] is copied._stream()
    assert len(pickle.dumps((data, order))) < 10_000


def test_what_comes_next_is_fetched_before_it_is_asked_for(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared(local, (4,) * 6, window=2)
    first = positions(data, 0, 8)
    stream = data._streams["train"]
    for future in list(stream._open.values()):
        future.result(timeout=10)
    assert set(stream._open) == {index // 4 for index in positions(prepared(local, (4,) * 6), 0, 16)}
    monkeypatch.setattr(ShardStream, "_fetch", lambda *_: pytest.fail("fetched again"))
    data.latents("train", torch.tensor(first), seed=0, iteration=0)


def test_a_shard_that_is_damaged_is_named_and_read_once_it_is_whole(local: LocalStore) -> None:
    data = prepared(local)
    shard = data.ref.splits["train"].shards[2].object  # type: ignore[union-attr]
    path = local.folder / "objects" / shard.sha256[:2] / shard.sha256
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(StoreError, match=shard.sha256):
        data.embeddings("train", torch.tensor([8]))
    path.write_bytes(content)
    assert data.embeddings("train", torch.tensor([8])).shape == (1, 3, 4)


class _Loss:
    """Depends on which rows there are, and on their noise."""

    def __init__(self, data: PreparedData) -> None:
        self.data = data

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x = self.data.latents("train", batch.indices, seed=batch.seed, iteration=batch.iteration)
        return {"loss": (model(x.flatten(1) / 20) - 0.3).square().mean()}


@pytest.mark.parametrize("stopped_at", [2, 9])
def test_a_training_goes_on_at_the_very_row(local: LocalStore, tmp_path: Path, stopped_at: int) -> None:
    config = TrainingConfig(iterations=12, batch_size=4, learning_rate=1e-2, checkpoint_interval_s=1e-6)

    def run(folder: str, progress: StopAfter | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        data = prepared(local)
        outcome = train(
            nn.Linear(4, 1), _Loss(data), training=config, samples=data.order("train"), seed=5,
            folder=tmp_path / folder, progress=progress,
        )  # fmt: skip
        return dict(outcome.model.state_dict())

    straight = run("straight")
    with pytest.raises(Interrupted):
        run("interrupted", StopAfter(stopped_at))
    continued = run("interrupted")
    assert all(torch.equal(straight[name], continued[name]) for name in straight)


class TestCache:
    """Shards of a store on a server: few of them are here."""

    @staticmethod
    def bytes_here(store: S3Store, data: PreparedData) -> int:
        names = {shard.object.sha256 for shard in data.ref.splits["train"].shards}  # type: ignore[union-attr]
        return sum(entry.bytes for entry in store.local.objects() if entry.name in names)

    @pytest.fixture
    def elsewhere(self, make_s3: MakeS3) -> S3Store:
        """A store that holds the shards, seen from another machine; its cache has room for five of eight."""
        first = make_s3(prefix="stream", local="first")
        split = StreamedSplit(shards=shards(first, (50,) * 8), window=2)
        self.ref = reference(first, split)
        size = split.shards[0].object.bytes
        return make_s3(prefix="stream", local="second", cache_gib=5.5 * size / (1 << 30))

    def test_the_longest_unused_goes_first(self, elsewhere: S3Store) -> None:
        split = self.ref.splits["train"]
        assert isinstance(split, StreamedSplit)
        refs = [shard.object for shard in split.shards]
        cache = ShardCache(elsewhere, refs)
        for number in (0, 1, 2, 3, 4, 0, 5):
            with cache.holding(refs[number]):
                pass
        here = [number for number, ref in enumerate(refs) if elsewhere.local.has(ref.sha256)]
        assert here == [0, 2, 3, 4, 5]

    def test_a_training_takes_no_more_than_the_cache(self, elsewhere: S3Store) -> None:
        data = PreparedData.load(elsewhere, self.ref)
        size = data.ref.splits["train"].shards[0].object.bytes  # type: ignore[union-attr]
        for start in range(0, 800, 50):
            indices = torch.tensor(positions(data, start, 50))
            found = data.latents("train", indices, seed=0, iteration=0)
            assert torch.equal(found[:, 0, 0, 0], indices.bfloat16().float())
            for future in list(data._streams["train"]._open.values()):
                future.result(timeout=30)
            assert size < self.bytes_here(elsewhere, data) <= 5.5 * size

    def test_a_shard_that_is_here_is_not_fetched_again(
        self, elsewhere: S3Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        split = self.ref.splits["train"]
        assert isinstance(split, StreamedSplit)
        refs = [shard.object for shard in split.shards]
        fetched: list[str] = []
        fetch = S3Store._fetch
        monkeypatch.setattr(S3Store, "_fetch", lambda s, sha, do: (fetched.append(sha), fetch(s, sha, do)))
        one, other = (ShardCache(elsewhere, refs) for _ in range(2))  # as two ranks have
        for cache in (one, other, one):
            with cache.holding(refs[0]) as path:
                assert path.is_file()
        assert fetched == [refs[0].sha256]

    def test_a_cache_that_is_too_small_is_refused(self, make_s3: MakeS3, elsewhere: S3Store) -> None:
        small = make_s3(prefix="stream", local="third", cache_gib=1e-6)
        with pytest.raises(ConfigError, match=r"store\.cache_gib is 9.99e-07, but 4 encoded shards"):
            PreparedData.load(small, self.ref)

    def test_a_full_disk_is_told_with_the_setting(
        self, elsewhere: S3Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = PreparedData.load(elsewhere, self.ref)

        def full(*_: object, **__: object) -> None:
            raise DiskFullError("no space left")

        monkeypatch.setattr(Local, "put_stream", full)
        with pytest.raises(DiskFullError, match=r"no space left; or .*store\.cache_gib"):
            data.latents("train", torch.tensor([0]), seed=0, iteration=0)

    def test_it_goes_to_another_process(self, elsewhere: S3Store) -> None:
        data = PreparedData.load(elsewhere, self.ref)
        data.latents("train", torch.tensor([0]), seed=0, iteration=0)  # has connections by now
        copy = pickle.loads(pickle.dumps(data))  # noqa: S301
        assert copy.latents("train", torch.tensor([399]), seed=0, iteration=0)[0, 0, 0, 0] == 400


def test_memory_stays_flat_over_a_hundred_thousand_rows(local: LocalStore) -> None:
    data = prepared(local, (1000,) * 100, window=4)

    def read(start: int, stop: int) -> int:
        for first in range(start, stop, 500):
            indices = epoch_indices(samples=data.order("train"), start=first, count=500, seed=1)
            data._take("train", "moments", indices)
        return int(psutil.Process().memory_info().rss)

    before = read(0, 20_000)
    after = read(20_000, 100_000)
    assert after - before < 8 << 20
    assert len(data._streams["train"]._open) <= 8


def test_the_order_of_many_shards_is_quick() -> None:
    """LAION-400M has 40,000 shards of 10,000: an order that mixed all rows would take seconds a batch."""
    ref = Shard.model_construct(rows=10_000, object=None)  # type: ignore[arg-type]
    split = StreamedSplit.model_construct(shards=(ref,) * 40_000, window=8)

    class Nothing:
        def expect(self, numbers: object) -> None:
            pass

    order = StreamOrder(split, Nothing)  # type: ignore[arg-type]
    found = order.indices(start=399_999_990, count=20, seed=0)
    assert len(set(found.tolist())) == 20


@pytest.mark.long
def test_two_processes_train_as_one_on_a_stream(local: LocalStore, tmp_path: Path) -> None:
    config = TrainingConfig(iterations=12, batch_size=4, learning_rate=1e-2)
    weights = []
    for processes in (1, 2):
        torch.manual_seed(0)
        data = prepared(local)
        outcome = train(
            nn.Linear(4, 1), _Loss(data), training=config, samples=data.order("train"), seed=5,
            folder=tmp_path / str(processes), processes=processes,
        )  # fmt: skip
        weights.append(outcome.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])
