"""A miss says what has changed since the stage last ran."""

import pytest

from steps.cache.keys import cached_stage
from steps.store import LocalStore, Store
from tests.steps.cache.test_keys import Stage, key


def reason(store: Store, **changes: object) -> str:
    return cached_stage(store, key(**changes), Stage(store)).reason


def test_a_stage_that_never_ran_says_so(store: Store) -> None:
    assert reason(store) == "miss: never run before"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"robust_training": {"lr": 2e-4}}}, "config.robust_training.lr 0.0001 -> 0.0002"),
        ({"inputs": {"velocity": "b"}}, "input velocity changed"),
        ({"version": 2}, "stage version 1 -> 2"),
        ({"seed": 5}, "seed 0 -> 5"),
        ({"extra": {"threads": 4}}, "extra.threads nothing -> 4"),
        ({"version": 2, "seed": 1}, "stage version 1 -> 2, seed 0 -> 1"),
        ({"config": {"robust_training": {"lr": list(range(99))}}},
         "config.robust_training.lr 0.0001 -> [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."),
        ({"config": {"robust_training": {"lr": 1e-4} | dict.fromkeys("abcdef", 1)}},
         "config.robust_training.a nothing -> 1, config.robust_training.b nothing -> 1, "
         "config.robust_training.c nothing -> 1, config.robust_training.d nothing -> 1, and 2 more"),
    ],
)  # fmt: skip
def test_what_differs_is_named(store: Store, change: dict[str, object], said: str) -> None:
    reason(store)
    assert reason(store, **change) == f"miss: {said}"


def test_a_task_is_compared_with_its_own_kind(store: Store) -> None:
    reason(store, label="unet", seed=1)
    reason(store, label="vae_decoder", seed=2)
    assert reason(store, label="unet", seed=3) == "miss: seed 1 -> 3"
    assert reason(store, label="text_encoder") == "miss: never run before"


def test_a_record_whose_object_is_gone_says_so(store: Store) -> None:
    record = cached_stage(store, key(), Stage(store)).record
    store.delete_object(record.weights.sha256)
    assert reason(store) == f"miss: object {record.weights.sha256} of its record is gone or cut short"


def test_a_damaged_document_is_not_compared_with(store: LocalStore) -> None:
    cached_stage(store, key(), Stage(store))
    (store.folder / "documents" / f"{key().document}.json").write_text("{}")
    assert reason(store, seed=1) == "miss: no earlier run is known to compare with"
