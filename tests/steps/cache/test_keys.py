"""The stage cache: what hits, what misses, and that one key is worked on once."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artifacts_schema.references import WeightsRef
from artifacts_schema.run_configs import StoreConfig
from artifacts_schema.training import TrainingRecord
from steps.cache.keys import StageKey, cached_stage
from steps.files.errors import StoreError
from steps.store import LocalStore, Store

if TYPE_CHECKING:  # it imports torch, which the processes below can do without
    from tests.conftest import MakeS3

ROOT = Path(__file__).resolve().parents[3]


def key(**changes: object) -> StageKey:
    values: dict[str, object] = {
        "stage": "robust_training",
        "version": 1,
        "config": {"robust_training": {"lr": 1e-4}},
        "inputs": {"velocity": "a"},
        "seed": 0,
        "extra": {},
    }
    return StageKey(**(values | changes))  # type: ignore[arg-type]


class Stage:
    """Counts how often it ran."""

    def __init__(self, store: Store) -> None:
        self.store, self.runs = store, 0

    def __call__(self) -> TrainingRecord:
        self.runs += 1
        ref = self.store.put_bytes(b"weights")
        weights = WeightsRef(**ref.model_dump(), schema_id="x", config=self.store.put_bytes(b"{}"))
        return TrainingRecord(stage="robust_training", weights=weights, iterations=1, batch_size=1)


def test_second_run_hits(store: Store) -> None:
    stage = Stage(store)
    first, second = cached_stage(store, key(), stage), cached_stage(store, key(), stage)
    assert (first.hit, second.hit, stage.runs) == (False, True, 1)
    assert first.record.identity() == second.record.identity()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"label": "unet"},
        {"config": {"robust_training": {"lr": 2e-4}}},
        {"inputs": {"velocity": "b"}},
        {"seed": 1},
        {"extra": {"threads": 4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_part_of_the_key_misses(store: Store, change: dict[str, object]) -> None:
    stage = Stage(store)
    cached_stage(store, key(), stage)
    assert not cached_stage(store, key(**change), stage).hit


def test_disabled_cache_runs_again(store: Store) -> None:
    stage = Stage(store)
    cached_stage(store, key(), stage)
    assert not cached_stage(store, key(), stage, enabled=False).hit
    assert stage.runs == 2


def test_record_without_its_object_is_a_miss(store: Store) -> None:
    stage = Stage(store)
    record = cached_stage(store, key(), stage).record
    store.delete_object(record.weights.sha256)
    assert not cached_stage(store, key(), stage).hit


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "a record is a JSON object"),
        ('{"schema": "someone.else", "version": 1}', "unknown record schema 'someone.else'"),
        ('{"schema": "snapfusion.training", "version": "1"}', "it must be an integer"),
        ('{"schema": "snapfusion.training", "version": 0}', "has no reader"),
        ('{"schema": "snapfusion.training", "version": 1}', "Field required"),
    ],
    ids=["empty", "no object", "foreign", "no version", "unreadable version", "no fields"],
)
def test_a_damaged_or_foreign_record_is_a_miss_that_says_why(
    store: Store, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    stage = Stage(store)
    store.put_document(key().document, text)
    assert not cached_stage(store, key(), stage).hit
    assert "its record is damaged; running it again" in caplog.text
    assert why in caplog.text
    assert cached_stage(store, key(), stage).hit


def test_a_record_that_names_no_object_is_a_miss(store: Store) -> None:
    stage = Stage(store)
    record = cached_stage(store, key(), stage).record
    sha256 = record.weights.sha256
    store.put_document(key().document, record.to_json().replace(sha256, f"#{sha256[1:]}"))
    assert not cached_stage(store, key(), stage).hit


def test_a_record_of_a_newer_version_is_not_overwritten(store: Store) -> None:
    text = '{"schema": "snapfusion.training", "version": 99}'
    store.put_document(key().document, text)
    with pytest.raises(StoreError, match=r"stages/robust_training/.* version 99 is newer.*update it"):
        cached_stage(store, key(), Stage(store))
    assert store.get_document(key().document) == text


def test_one_flipped_digit_in_a_record_is_a_miss(store: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(store)
    cached_stage(store, key(), stage)
    path = store.folder / "documents" / f"{key().document}.json"
    assert path.read_text().count('"iterations": 1,') == 1
    path.write_text(path.read_text().replace('"iterations": 1,', '"iterations": 9,'))
    found = cached_stage(store, key(), stage)
    assert (found.hit, found.record.iterations, stage.runs) == (False, 1, 2)
    assert "does not have the hash it was written with" in caplog.text
    assert cached_stage(store, key(), stage).hit


@pytest.mark.parametrize("enabled", [True, False], ids=["with the cache", "store.cache = false"])
def test_who_was_taken_for_dead_does_not_write_over_the_winners_entry(store: Store, enabled: bool) -> None:
    """It is suspended while it works; another takes over, and finishes first."""
    stage, entries = Stage(store), []

    def stopped() -> TrainingRecord:
        cached_stage(store, replace(key(), label="another lease"), stage)
        text = store.get_document(replace(key(), label="another lease").document)
        store.put_document(key().document, str(text).replace('"iterations": 1', '"iterations": 2'))
        entries.append(store.get_document(key().document))
        return stage()

    found = cached_stage(store, key(), stopped, enabled=enabled)
    assert store.get_document(key().document) == entries[0]
    assert (found.hit, found.record.iterations) == ((True, 2) if enabled else (False, 1))


def test_failed_stage_leaves_no_record(store: Store) -> None:
    def fail() -> TrainingRecord:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        cached_stage(store, key(), fail)
    assert not cached_stage(store, key(), Stage(store)).hit


def test_two_runs_work_on_one_key_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.cache.leases._WAIT_S", 0.01)
    stage, works, waits = Stage(store), threading.Event(), threading.Event()
    monkeypatch.setattr("steps.cache.leases.holder", lambda _: waits.set())

    def slow() -> TrainingRecord:
        works.set()
        assert waits.wait(20)
        return stage()

    threads = [threading.Thread(target=cached_stage, args=(store, key(), slow)) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert works.wait(20)
    for thread in threads:
        thread.join()
    assert stage.runs == 1


def test_processes_that_start_at_once_work_once_on_s3(make_s3: "MakeS3", tmp_path: Path) -> None:
    """Two runs on one store, as processes: one works, both have its record."""
    store = make_s3()
    config = StoreConfig(root=store.root)
    code = (
        "import sys, time; from pathlib import Path; from artifacts_schema.config import StoreConfig\n"
        "from steps.store import open_store; from steps.cache.keys import cached_stage\n"
        "from tests.steps.cache.test_keys import Stage, key\n"
        f"store = open_store(StoreConfig(root={config.root!r}, local=sys.argv[1]), Path('/'))\n"
        "stage = Stage(store)\n"
        "def work():\n    time.sleep(0.5)\n    return stage()\n"
        "record = cached_stage(store, key(), work).record\n"
        "print(stage.runs, record.identity())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / f"cache-{number}")],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(runs for runs, _ in said) == ["0", "1"]
    assert len({identity for _, identity in said}) == 1
