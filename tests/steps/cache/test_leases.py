"""Leases: one holder, taken over when it is gone or silent, whatever the wall clock says; and the collector's lock."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from steps.cache import leases
from steps.cache.leases import LEASE_S, Held, alone, in_use, is_free, lease
from steps.files.errors import StoreError
from steps.store import LocalStore, Store
from tests.conftest import MakeS3
from tests.steps.cache.conftest import Clock

ROOT = Path(__file__).resolve().parents[3]
KEY = "stages/a/1"
DOCUMENT = f"leases/{KEY}"


def claim(**changes: object) -> str:
    """A lease of this process, as another machine would have written it."""
    values = {"owner": "somebody", "host": "there", "machine": "another", "pid": os.getpid(), "started": "1"}
    return json.dumps({**values, "work": "teacher_16 of run 7", "beat": 0, **changes})


@pytest.fixture
def killed(store: LocalStore) -> None:
    """A process of this machine that was killed while it held the lease and used the store."""
    code = (
        "import os, signal; from pathlib import Path; from steps.store import LocalStore\n"
        f"from steps.cache.leases import in_use, lease\nstore = LocalStore(Path({str(store.folder)!r}), durable=False)\n"
        f"with in_use(store, 'work'), lease(store, {KEY!r}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert ended.returncode == -signal.SIGKILL


@pytest.fixture
def child() -> Iterator[int]:
    """The id of another living process."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


def test_it_is_free_before_and_after(store: Store) -> None:
    with lease(store, KEY):
        assert not is_free(store.get_document(DOCUMENT))
    assert is_free(store.get_document(DOCUMENT))


def test_it_is_free_after_a_failure(store: Store) -> None:
    with pytest.raises(RuntimeError), lease(store, KEY):
        raise RuntimeError
    assert is_free(store.get_document(DOCUMENT))


def test_a_killed_holder_of_this_machine_is_not_waited_for(store: Store, killed: None, clock: Clock) -> None:
    with lease(store, KEY), alone(store):
        assert clock.time_s == 0.0


def test_a_process_id_that_is_used_again_does_not_hold_it(store: Store, clock: Clock) -> None:
    store.put_document(DOCUMENT, claim(machine=leases.machine()))
    with lease(store, KEY):
        assert clock.time_s == 0.0


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError(errno.ENOENT, "hidepid=2"),
        PermissionError(errno.EACCES, "no right"),
        OSError(errno.EMFILE, "no handle left"),
    ],
    ids=lambda error: errno.errorcode[error.errno],
)
def test_what_the_system_does_not_tell_proves_nobody_dead(
    store: Store, clock: Clock, child: int, monkeypatch: pytest.MonkeyPatch, failure: OSError
) -> None:
    store.put_document(DOCUMENT, claim(machine=leases.machine(), pid=child, started=leases._started(child)))
    assert not is_free(store.get_document(DOCUMENT))
    read = Path.read_text

    def hidden(path: Path, *arguments: object) -> str:
        if path == Path(f"/proc/{child}/stat"):
            raise failure
        return read(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", hidden)
    assert not is_free(store.get_document(DOCUMENT))
    with lease(store, KEY):  # its silence counts all the same
        assert clock.time_s > LEASE_S


def test_where_the_system_does_not_name_the_machine_nobody_is_proven_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "machine", lambda: None)
    assert not is_free(claim(machine=None, pid=2**22 + 1))


def test_a_silent_holder_elsewhere_is_taken_over(store: Store, clock: Clock) -> None:
    store.put_document(DOCUMENT, claim())
    with lease(store, KEY):
        assert clock.time_s > LEASE_S


@pytest.mark.parametrize("jump_s", [0.0, -86_400.0, 86_400.0], ids=["no jump", "back a day", "on a day"])
def test_nobody_gives_up_while_the_holder_renews_whatever_the_wall_clock_says(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    other = Held(store, DOCUMENT)
    other._claim["machine"] = "another"
    assert other.take(None)

    def renew_for_a_while() -> None:
        if clock.time_s < 7 * 3600:
            assert other.renew()

    clock.meanwhile = renew_for_a_while
    monkeypatch.setattr(leases, "_WAIT_S", 10.0)
    with lease(store, KEY):
        assert clock.time_s > 7 * 3600


def test_a_holder_that_was_taken_for_dead_notices(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    held = Held(store, DOCUMENT)
    assert held.take(None)
    with held.kept():
        store.put_document(DOCUMENT, claim())
        assert not held.renew()
        with pytest.raises(StoreError, match="was not renewed in time"):
            held.require()
    assert "was taken over by teacher_16 of run 7 on host there" in caplog.text
    assert store.get_document(DOCUMENT) == claim()  # and does not release what is not its own


def test_a_holder_that_was_stopped_for_long_does_no_harm(store: Store, clock: Clock) -> None:
    held = Held(store, DOCUMENT)
    assert held.take(None)
    held.require()
    clock.time_s += LEASE_S
    with pytest.raises(StoreError, match="was not renewed in time"):
        held.require()
    assert held.renew()
    held.require()


def test_many_that_wait_get_it_one_by_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_WAIT_S", 0.01)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with lease(store, KEY):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


class Stop(threading.Event):
    """Ends the renewing thread after so many renewals."""

    def __init__(self, renewals: int) -> None:
        super().__init__()
        self.left = renewals

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout == LEASE_S / 4
        self.left -= 1
        return self.left < 0


def test_a_store_that_fails_for_a_while_does_not_end_the_renewals(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held, swap, calls = Held(store, DOCUMENT), store.swap_document, []

    def fail_once(*arguments: str) -> bool:
        calls.append(arguments)
        if len(calls) == 1:
            raise StoreError("no answer")
        return swap(*arguments)

    assert held.take(None)
    monkeypatch.setattr(store, "swap_document", fail_once)
    held._keep(Stop(3))
    assert "tried again: no answer" in caplog.text
    assert json.loads(store.get_document(DOCUMENT) or "")["beat"] == 3


def test_a_file_lock_that_fails_does_not_end_the_renewals(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(store, DOCUMENT)
    assert held.take(None)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as broken:
        broken.setattr("steps.store.local.fcntl.flock", no_locks)
        held._keep(Stop(1))
    assert "tried again: cannot write to the store" in caplog.text
    assert held.renew()


def test_a_lease_that_was_removed_comes_back(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    held = Held(store, DOCUMENT)
    assert held.take(None)
    store.delete_document(DOCUMENT)
    assert held.renew()
    assert not is_free(store.get_document(DOCUMENT))
    assert caplog.text == ""


def test_a_renewal_whose_answer_was_lost_is_no_takeover(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held, swap = Held(store, DOCUMENT), store.swap_document
    assert held.take(None)

    def lose_the_answer(*arguments: str) -> bool:
        assert swap(*arguments)
        raise StoreError("no answer")

    with monkeypatch.context() as broken:
        broken.setattr(store, "swap_document", lose_the_answer)
        held._keep(Stop(1))
    assert held.renew()
    assert "taken over" not in caplog.text


def damage(store: LocalStore) -> None:
    path = store.folder / "documents" / f"{DOCUMENT}.json"
    path.write_bytes(path.read_bytes().replace(b'"beat": 0', b'"beat": 1'))


def test_a_damaged_lease_is_written_anew_by_its_holder(store: LocalStore, clock: Clock) -> None:
    held = Held(store, DOCUMENT)
    assert held.take(None)
    damage(store)
    assert held.renew()
    assert json.loads(store.get_document(DOCUMENT) or "")["beat"] == 1


def test_a_damaged_lease_that_nobody_writes_anew_is_taken_over(store: LocalStore, clock: Clock) -> None:
    store.put_document(DOCUMENT, claim())
    damage(store)
    with lease(store, KEY):
        assert clock.time_s > LEASE_S


def test_nobody_has_the_store_alone_while_it_is_in_use(store: Store, clock: Clock) -> None:
    with (
        in_use(store, "draw"),
        pytest.raises(StoreError, match=rf"not now: .* in use.* draw on host .* pid {os.getpid()}"),
        alone(store),
    ):
        pass
    with alone(store):
        assert clock.time_s == 0.0
    assert store.list_documents("leases/use/") == []


def test_who_comes_while_somebody_has_the_store_alone_waits(store: Store, clock: Clock) -> None:
    with ExitStack() as stack:
        stack.enter_context(alone(store))

        def end() -> None:
            if clock.time_s > 60.0:
                stack.close()

        clock.meanwhile = end
        with in_use(store, "draw"):
            assert 60.0 < clock.time_s < LEASE_S


def test_two_do_not_collect_at_once(store: Store) -> None:
    with (
        alone(store),
        pytest.raises(StoreError, match="not now: collection on host .* collects"),
        alone(store),
    ):
        pass
    with alone(store):
        pass


def test_one_that_works_elsewhere_is_seen_by_its_next_renewal(store: Store, clock: Clock) -> None:
    store.put_document("leases/use/1", claim())
    clock.meanwhile = lambda: store.put_document("leases/use/1", claim(beat=1))
    with pytest.raises(StoreError, match="teacher_16 of run 7 on host there"), alone(store):
        pass
    clock.meanwhile = lambda: None
    with alone(store):  # it was killed
        assert clock.time_s > LEASE_S


@pytest.mark.parametrize("first", ["worker", "collector"])
def test_of_a_worker_and_a_collector_that_come_at_once_one_sees_the_other(
    store: LocalStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Between what one writes and its look for the other, the other writes."""
    swap, other = store.swap_document, Held(store, "leases/use/1", "other")
    if first == "worker":
        other = Held(store, "leases/collection", "collection")

    def swap_then_the_other(document: str, old: str | None, new: str) -> bool:
        done = swap(document, old, new)
        monkeypatch.setattr(store, "swap_document", swap)
        assert other.take(None)
        return done

    monkeypatch.setattr(store, "swap_document", swap_then_the_other)
    if first == "collector":
        with pytest.raises(StoreError, match="not now: .*other on host"), alone(store):
            pass
    else:
        clock.meanwhile = lambda: other._release(remove=False)
        with in_use(store, "draw"):
            assert clock.time_s > 0.0


def test_leases_hold_on_s3(make_s3: MakeS3, clock: Clock) -> None:
    store = make_s3()
    with in_use(store, "draw"), lease(store, KEY):
        for place in (store, store.cache):
            with pytest.raises(StoreError, match="not now: .*draw on host"), alone(place):
                pass
    with alone(store), alone(store.cache), lease(store, KEY):
        assert clock.time_s == 0.0
