"""Leases: one holder, taken over when it is gone or silent, whatever the wall clock says."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steps.cache import leases
from steps.cache.leases import is_free, lease, living, remove_lease
from steps.files.errors import DamagedError, StoreError
from steps.store import LocalStore, Store

ROOT = Path(__file__).resolve().parents[3]
KEY = "stages/a/1"


def document(store: Store) -> str | None:
    return store.get_document(f"leases/{KEY}")


def test_it_is_free_before_and_after(store: Store) -> None:
    with lease(store, KEY):
        assert not is_free(document(store))
        with (
            pytest.raises(StoreError, match=f"still held after 0 s by host .* pid {os.getpid()}"),
            lease(store, KEY, wait_s=0.0),
        ):
            pass
    assert is_free(document(store))


def test_it_is_free_after_a_failure(store: Store) -> None:
    with pytest.raises(RuntimeError), lease(store, KEY):
        raise RuntimeError
    assert is_free(document(store))


def test_a_killed_holder_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    code = (
        "import os, signal; from pathlib import Path; from steps.store import LocalStore\n"
        "from steps.cache.leases import lease\n"
        f"with lease(LocalStore(Path({str(tmp_path)!r})), {KEY!r}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert json.loads(document(store) or "{}")["beat"] == 0
    started = time.monotonic()
    with lease(store, KEY):
        assert time.monotonic() - started < 5.0


def test_a_process_id_that_is_used_again_does_not_hold_it(store: Store) -> None:
    store.put_document(f"leases/{KEY}", json.dumps(_claim()))
    assert is_free(document(store))


def _claim() -> dict[str, object]:
    """A lease of this process."""
    return {
        "owner": "somebody",
        "host": "here",
        "machine": leases.machine(),
        "pid": os.getpid(),
        "started": "1",
        "beat": 0,
    }


def test_a_silent_holder_elsewhere_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    monkeypatch.setattr(leases, "_WAIT_S", 0.1)
    elsewhere = json.dumps({**_claim(), "machine": "another"})
    store.put_document(f"leases/{KEY}", elsewhere)
    started = time.monotonic()
    with lease(store, KEY):
        assert time.monotonic() - started >= 0.5


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0], ids=["back a day", "on a day"])
def test_wall_clock_jumps_change_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.8)
    monkeypatch.setattr(leases, "_WAIT_S", 0.1)
    with lease(store, KEY):
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + jump_s)
        # The holder renews all the time: however long the other waits, it does not get it.
        with pytest.raises(StoreError, match="still held"), lease(store, KEY, wait_s=2.0):
            pass


def test_a_holder_that_was_taken_for_dead_notices(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    other = json.dumps({**_claim(), "machine": "another"})
    with lease(store, KEY):
        store.put_document(f"leases/{KEY}", other)
        time.sleep(0.8)
    assert "was taken over by host here" in caplog.text
    assert document(store) == other  # and does not release what is not its own


def test_many_that_wait_get_it_one_by_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_WAIT_S", 0.02)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with lease(store, KEY):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_a_lease_of_the_first_format_is_understood() -> None:
    assert is_free('{"owner": "a", "expires": 0.0}')
    assert not is_free('{"owner": "a", "host": "h", "pid": 1, "expires": 4e9}')


def test_a_store_that_fails_for_a_while_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    store = LocalStore(tmp_path)
    with lease(store, KEY), monkeypatch.context() as broken:

        def fail(*_: object) -> bool:
            raise StoreError("no answer")

        broken.setattr(store, "swap_document", fail)
        time.sleep(0.3)
    assert "tried again: no answer" in caplog.text
    assert is_free(document(store))


def test_a_lease_that_was_removed_comes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector took it for idle, and its removal arrives late."""
    monkeypatch.setattr(leases, "LEASE_S", 0.8)
    with lease(store, KEY):
        store.delete_document(f"leases/{KEY}")
        time.sleep(0.8)
        assert not is_free(document(store))
    assert "taken over" not in caplog.text
    assert is_free(document(store))


def test_a_renewal_whose_answer_was_lost_is_no_takeover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    store = LocalStore(tmp_path)
    swap, lost = store.swap_document, threading.Event()

    def lose_one_answer(name: str, old: str | None, new: str) -> bool:
        done = swap(name, old, new)
        if not lost.is_set():
            lost.set()
            raise StoreError("no answer")
        return done

    with lease(store, KEY):
        monkeypatch.setattr(store, "swap_document", lose_one_answer)
        time.sleep(0.5)
    assert "tried again: no answer" in caplog.text
    assert "taken over" not in caplog.text
    assert is_free(document(store))


def test_a_lease_is_removed_only_as_it_was_seen(store: Store) -> None:
    with lease(store, KEY):
        pass
    seen = document(store)
    assert seen is not None
    with lease(store, KEY):
        assert not remove_lease(store, KEY, seen)
        assert not is_free(document(store))
    seen = document(store)
    assert seen is not None
    assert remove_lease(store, KEY, seen)
    assert document(store) is None


def test_who_comes_while_a_lease_is_removed_waits_and_has_it_to_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_WAIT_S", 0.05)
    with lease(store, KEY):
        pass
    inside, leave = threading.Event(), threading.Event()
    delete = store.delete_document

    def work() -> None:
        with lease(store, KEY):
            inside.set()
            assert leave.wait(20)

    worker = threading.Thread(target=work)

    def delete_late(name: str) -> None:
        if name == f"leases/{KEY}":
            worker.start()
            assert not inside.wait(0.5)
        delete(name)

    monkeypatch.setattr(store, "delete_document", delete_late)
    assert remove_lease(store, KEY, document(store) or "")
    assert inside.wait(20)
    assert not is_free(document(store))
    leave.set()
    worker.join(20)


@pytest.mark.parametrize("text", ["", "no JSON", "[]"])
def test_a_damaged_lease_is_named(store: Store, text: str) -> None:
    store.put_document(f"leases/{KEY}", text)
    with pytest.raises(DamagedError, match=f"document leases/{KEY} is damaged"), lease(store, KEY):
        pass
    with pytest.raises(DamagedError, match=f"document leases/{KEY} is damaged"):
        living(store)
