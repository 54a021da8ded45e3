"""What a run notes of its stages is read back: key, version, and what the cache did."""

from steps.store import Store
from steps.store.cache import StageKey
from steps.store.uses import StageUse, mark_finished, mark_use, stage_uses


def key(stage: str = "robust_training", version: int = 1, seed: int = 0) -> StageKey:
    return StageKey(stage=stage, version=version, config={}, inputs=(), seed=seed, extra={})


def test_a_run_notes_what_the_cache_did(store: Store) -> None:
    first, labelled = key(), key("evaluation", 3)
    mark_use(store, "1", first)
    assert stage_uses(store, "1") == {}  # not finished
    mark_finished(store, "1", first, name="robust_training", cached=False)
    mark_finished(store, "1", labelled, name="evaluation base_50", cached=True)
    assert stage_uses(store, "1") == {
        "robust_training": StageUse(first.sha256, 1, False),
        "evaluation base_50": StageUse(labelled.sha256, 3, True),
    }
    assert stage_uses(store, "2") == {}


def test_a_resumed_run_knows_what_it_took_over(store: Store) -> None:
    first, again, taken = key(), key(seed=1), key("student_16")
    mark_finished(store, "1", first, name="robust_training", cached=True)
    mark_finished(store, "1", taken, name="student_16", cached=True)
    mark_finished(store, "2", again, name="robust_training", cached=False, origin="1")
    expected = {
        "robust_training": StageUse(again.sha256, 1, False),
        "student_16": StageUse(taken.sha256, 1, True),
    }
    assert stage_uses(store, "2") == expected
    # A run that has run no stage itself has no note of its origin; who asks knows it.
    assert stage_uses(store, "3", origin="2") == expected


def test_notes_of_an_older_program_say_nothing_of_the_cache(store: Store) -> None:
    store.put_document(f"runs/1/start-{'0' * 64}", '{"entry": "stages/start/0", "origin": null}')
    assert stage_uses(store, "1") == {}
