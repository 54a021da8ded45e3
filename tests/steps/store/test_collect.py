"""The garbage collector: removes what no kept run refers to, and nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts_schema.references import WeightsRef
from artifacts_schema.training import TrainingRecord
from steps.store import LocalStore, Store, leases
from steps.store import collect as module
from steps.store.cache import StageKey, cached_stage
from steps.store.collect import Collector, Retention, main
from steps.store.leases import lease
from steps.store.uses import mark_use

NOW = Retention(min_age_s=-60.0)  # clocks of server and client may differ by a second


def key(stage: str) -> StageKey:
    return StageKey(stage=stage, version=1, config={}, inputs=[], seed=0, extra={})


def use(store: Store, run: str, stage: str, origin: str | None = None) -> TrainingRecord:
    """What a run does with a stage."""

    def work() -> TrainingRecord:
        ref = store.put_bytes(f"weights of {stage}".encode())
        weights = WeightsRef(**ref.model_dump(), schema_id="x", config=store.put_bytes(b"{}"))
        return TrainingRecord(stage=stage, weights=weights, iterations=1, batch_size=1)

    mark_use(store, run, key(stage), origin=origin)
    record: TrainingRecord = cached_stage(store, key(stage), work).record
    return record


def finish(store: Store, run: str, **records: TrainingRecord) -> None:
    """What the report of a run leaves."""
    inputs = {name: record.identity() for name, record in records.items()}
    for record in records.values():
        store.put_document(f"records/{record.identity()}", record.to_json())
    store.put_document(f"reports/{run}", json.dumps({"inputs": inputs}))


def objects(store: Store) -> set[str]:
    return {entry.name for entry in store.objects()}


def test_nothing_goes_while_every_run_is_kept(store: Store) -> None:
    finish(store, "1", a=use(store, "1", "a"))
    use(store, "2", "b")  # did not finish, and may be resumed
    before = objects(store), store.list_documents("stages/"), store.list_documents("runs/")
    Collector(store, NOW).remove()
    assert before == (objects(store), store.list_documents("stages/"), store.list_documents("runs/"))


def test_what_only_a_dropped_run_used_goes(store: Store) -> None:
    shared, own, new = use(store, "1", "shared"), use(store, "1", "own"), None
    finish(store, "1", shared=shared, own=own)
    use(store, "2", "shared")
    new = use(store, "2", "new")
    finish(store, "2", shared=shared, new=new)
    orphan = store.put_bytes(b"of no run at all")
    found = Collector(store, Retention(drop=["1"], min_age_s=-60.0)).remove()
    assert found.runs == ["1"]
    assert set(found.objects) == {own.weights.sha256, orphan.sha256}
    assert store.has(shared.weights.sha256)
    assert store.has(new.weights.sha256)
    assert store.list_documents("reports/") == ["reports/2"]
    assert cached_stage(store, key("shared"), lambda: shared).hit
    assert not cached_stage(store, key("own"), lambda: own).hit


def test_searching_removes_nothing(store: Store) -> None:
    finish(store, "1", a=use(store, "1", "a"))
    before = objects(store), store.list_documents("")
    found = Collector(store, Retention(keep_last=0, min_age_s=-60.0)).find()
    assert found.objects
    assert (objects(store), store.list_documents("")) == before


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for number, run in enumerate(("3", "1", "2")):
        use(store, run, f"stage-{run}")
        for path in (tmp_path / "documents" / "runs" / run).iterdir():
            os.utime(path, (1e9 + number, 1e9 + number))
    found = Collector(store, Retention(keep_last=2, min_age_s=-60.0)).find()
    assert (found.kept_runs, found.runs) == (["1", "2"], ["3"])


def test_a_run_that_was_resumed_keeps_its_origin(store: Store) -> None:
    first = use(store, "1", "a")
    use(store, "2", "b", origin="1")
    found = Collector(store, Retention(drop=["1"], min_age_s=-60.0)).remove()
    assert found.runs == []
    assert store.has(first.weights.sha256)


def test_what_is_young_stays(store: Store) -> None:
    record = use(store, "1", "a")
    orphan = store.put_bytes(b"on its way into a record")
    found = Collector(store, Retention(keep_last=0, min_age_s=3600.0)).remove()
    assert (found.runs, found.documents, found.objects, found.work) == ([], [], {}, {})
    assert store.has(record.weights.sha256)
    assert store.has(orphan.sha256)


def test_what_a_working_stage_writes_stays_however_old(store: Store) -> None:
    work = store.work_folder("b/123")
    (work / "checkpoint").write_bytes(b"x")
    with lease(store, "stages/b/123"):
        chunk = store.put_bytes(b"first chunk of many")
        found = Collector(store, NOW).remove()
        assert chunk.sha256 not in found.objects
        assert store.has(chunk.sha256)
        assert (work / "checkpoint").is_file()
    assert chunk.sha256 in Collector(store, NOW).remove().objects


def test_a_lease_that_looks_dead_is_watched_before_it_counts_as_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a jump of the clock: every document looks old, and the holder lives."""
    monkeypatch.setattr(leases, "_SILENT_S", -60.0)
    monkeypatch.setattr(leases, "LEASE_S", 2.0)
    with lease(store, "stages/b/123"):
        chunk = store.put_bytes(b"first chunk of many")
        Collector(store, NOW).remove()
        assert store.has(chunk.sha256)


def test_a_stage_that_is_used_during_the_removal_stays(store: Store) -> None:
    record = use(store, "1", "a")
    collector = Collector(store, Retention(drop=["1"], min_age_s=-60.0))
    find: Callable[[], module.Garbage] = collector.find

    def find_then_run() -> module.Garbage:
        found = find()
        collector.min_age_s = 3600.0  # what follows is young
        use(store, "2", "a")
        return found

    collector.find = find_then_run  # type: ignore[method-assign]
    collector.remove()
    assert store.has(record.weights.sha256)
    assert cached_stage(store, key("a"), lambda: record).hit


def test_checkpoints_go_only_when_their_stage_has_finished(store: Store) -> None:
    use(store, "1", "a")
    finished, unfinished = f"a/{key('a').sha256}", f"b/{key('b').sha256}"
    for name in (finished, unfinished):
        (store.work_folder(name) / "checkpoints").mkdir()
        file = store.work_folder(name) / "checkpoints" / "state.json"
        file.write_text("{}")
        mirror = store.mirror(name)
        if mirror is not None:
            mirror.send("checkpoints/state.json", file)
    assert set(Collector(store, NOW).remove().work) == {finished}
    assert [entry.name for entry in store.work()] == [unfinished]


def test_documents_of_unknown_kinds_stay_with_their_objects(store: Store) -> None:
    ref = store.put_bytes(b"champion")
    store.put_document("champion", ref.model_dump_json())
    Collector(store, NOW).remove()
    assert store.has(ref.sha256)
    assert store.get_document("champion") is not None


def test_partial_files_of_killed_processes_go(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    partial = tmp_path / "objects" / ".partial-abc"
    partial.write_bytes(b"half")
    assert list(Collector(store, NOW).remove().objects) == [partial.name]
    assert not partial.exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"orphan")
    os.utime(store.path_of(ref), (1e9, 1e9))
    assert main(["--store", str(tmp_path)]) == 0
    assert "would remove 0 runs, 0 documents, 1 objects" in capsys.readouterr().out
    assert store.has(ref.sha256)
    assert main(["--store", str(tmp_path), "--delete"]) == 0
    assert not store.has(ref.sha256)
    for refused in (["--store", str(tmp_path / "none")], ["--min-age-hours", "0"]):
        with pytest.raises(SystemExit):
            main(refused)
