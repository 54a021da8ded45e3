"""What a run notes of its stages is read back: key, version, and what the cache did."""

from artifacts_schema.references import WeightsRef
from artifacts_schema.training import TrainingRecord
from steps.cache.keys import CacheResult, StageKey
from steps.cache.notes import StageUse, first_run, mark_use, stage_uses
from steps.store import Store


def key(stage: str = "robust_training", version: int = 1, *, label: str = "", seed: int = 0) -> StageKey:
    return StageKey(stage=stage, version=version, config={}, inputs={}, seed=seed, extra={}, label=label)


def finish(store: Store, run_id: str, stage: StageKey, *, cached: bool, origin: str | None = None) -> None:
    ref = store.put_bytes(b"weights")
    weights = WeightsRef(**ref.model_dump(), schema_id="x", config=ref)
    record = TrainingRecord(stage=stage.stage, weights=weights, iterations=1, batch_size=1)
    mark_use(store, run_id, stage, origin=origin, result=CacheResult(record, cached, stage.sha256, ""))


def test_a_run_notes_what_the_cache_did(store: Store) -> None:
    first, labelled = key(), key("evaluation", 3, label="base_50")
    mark_use(store, "1", first)
    assert stage_uses(store, "1") == {}  # not finished
    finish(store, "1", first, cached=False)
    finish(store, "1", labelled, cached=True)
    assert stage_uses(store, "1") == {
        "robust_training": StageUse(first.sha256, 1, False),
        "evaluation base_50": StageUse(labelled.sha256, 3, True),
    }
    assert stage_uses(store, "2") == {}


def test_a_resumed_run_knows_what_it_took_over(store: Store) -> None:
    first, again, taken = key(), key(seed=1), key("student_16")
    finish(store, "1", first, cached=True)
    finish(store, "1", taken, cached=True)
    finish(store, "2", again, cached=False, origin="1")
    expected = {
        "robust_training": StageUse(again.sha256, 1, False),
        "student_16": StageUse(taken.sha256, 1, True),
    }
    assert stage_uses(store, "2") == expected
    # A run that has run no stage itself has no note of its origin; who asks knows it.
    assert stage_uses(store, "3", origin="2") == expected


def test_a_chain_of_resumed_runs_has_one_beginning(store: Store) -> None:
    mark_use(store, "1", key())
    mark_use(store, "2", key(), origin="1")
    mark_use(store, "3", key(), origin="2")
    assert [first_run(store, "3", "2"), first_run(store, "4", "3"), first_run(store, "1", None)] == ["1"] * 3
    assert first_run(store, "4", None) == "4"
