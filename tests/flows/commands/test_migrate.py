"""Migration of a store to another layout, on both stores. The migrations are the tests' own: none was needed yet."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from artifacts_schema.config import StoreConfig
from flows.commands import migrate as module
from flows.commands.collect import Collector, Retention
from flows.commands.migrate import main, migrate
from steps.cache import leases
from steps.cache.keys import StageKey, cached_stage
from steps.cache.leases import lease
from steps.files.errors import StoreError
from steps.store import LocalStore, Store, layout, open_store
from steps.store.layout import Change, Marker, Migration

ROOT = Path(__file__).resolve().parents[3]
REPORTS = {f"reports/{run}": json.dumps({"run": run}) for run in range(4)}
MOVED = {key.replace("reports/", "finished/"): text for key, text in REPORTS.items()}
STAGE = StageKey(stage="a", version=1, config={}, inputs={}, seed=0, extra={})


def move(store: Store, old: str, new: str, kill: str) -> None:
    """The new place first. `kill` names the document at which the process dies with both places written."""
    text = store.get_document(old)
    if text is None:
        return
    store.put_document(new, text)
    if old == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    store.delete_document(old)


def move_all(old: str, new: str, kill: str = "") -> Migration:
    def changes(store: Store) -> Iterator[Change]:
        for key in store.list_documents(old):
            target = key.replace(old, new, 1)
            yield Change(f"document {key} becomes {target}", partial(move, store, key, target, kill))

    return Migration(f"{old} becomes {new}", changes)


def killed(arguments: list[str], version: int, kill: str) -> None:
    """For a process of its own: a migration that is killed when it comes to `kill`."""
    layout.LAYOUT_VERSION = version
    layout.MIGRATIONS.update(
        {1: move_all("reports/", "finished/", kill), 2: move_all("finished/", "done/", kill)}
    )
    main(arguments)


def run_killed(store: Store, version: int, kill: str) -> None:
    code = f"from {__name__} import killed; killed({options(store)!r}, {version}, {kill!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture
def old(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of version 1 with documents, while the program reads version 2."""
    store.check()
    for key, text in REPORTS.items():
        store.put_document(key, text)
    monkeypatch.setattr(layout, "LAYOUT_VERSION", 2)
    monkeypatch.setitem(layout.MIGRATIONS, 1, move_all("reports/", "finished/"))
    return store


def options(store: Store) -> list[str]:
    cache = ["--local", str(store.local.folder)] if hasattr(store, "local") else []
    return ["--store", store.root, *cache]


def reopen(store: Store) -> Store:
    cache = {"local": str(store.local.folder)} if hasattr(store, "local") else {}
    return open_store(StoreConfig.model_validate({"root": store.root, **cache}), ROOT)


def documents(store: Store) -> dict[str, str | None]:
    """All but leases."""
    keys = [key for key in store.list_documents("") if not key.startswith("leases/")]
    return {key: store.get_document(key) for key in keys}


def test_shipped_migrations_lead_to_the_current_version() -> None:
    assert set(layout.MIGRATIONS) == set(range(1, layout.LAYOUT_VERSION))


def test_an_older_store_is_refused_with_the_command(old: Store) -> None:
    with pytest.raises(StoreError, match=r"this program reads 2; .*python -m steps\.store\.migrate --store "):
        reopen(old)
    with pytest.raises(StoreError, match=f"has layout version 1.* --store {old.root}"):
        layout.check_layout(old)


def test_a_migrated_store_is_current(old: Store, capsys: pytest.CaptureFixture[str]) -> None:
    ref = old.put_bytes(b"weights")
    assert main(options(old)) == 0
    assert "document reports/0 becomes finished/0" in capsys.readouterr().out
    assert documents(old) == MOVED
    assert old.read_layout() == '{"version": 2}'
    assert reopen(old).has(ref.sha256)
    assert main(options(old)) == 0
    assert "has the current layout version 2: nothing to do" in capsys.readouterr().out


def test_a_killed_migration_goes_on(old: Store) -> None:
    run_killed(old, 2, "reports/2")
    assert documents(old) == {
        key: text
        for key, text in (REPORTS | MOVED).items()
        if key not in ("reports/0", "reports/1", "finished/3")
    }
    assert old.read_layout() == '{"version": 1, "migrating_to": 2}'
    assert main(options(old)) == 0
    assert documents(old) == MOVED
    reopen(old)


def test_a_migration_that_is_killed_in_its_second_step_goes_on_there(
    old: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layout, "LAYOUT_VERSION", 3)
    monkeypatch.setitem(layout.MIGRATIONS, 2, move_all("finished/", "done/"))
    run_killed(old, 3, "finished/1")
    assert old.read_layout() == '{"version": 2, "migrating_to": 3}'
    assert main(options(old)) == 0
    assert documents(old) == {key.replace("finished/", "done/"): text for key, text in MOVED.items()}
    assert "document finished/0" not in capsys.readouterr().out
    reopen(old)


def test_a_store_that_is_being_migrated_is_refused(old: Store) -> None:
    old.swap_layout(old.read_layout(), Marker(1, 2).text)
    with pytest.raises(StoreError, match=r"is being migrated from layout version 1 to 2; .*finish it with: "):
        layout.check_layout(old)
    with pytest.raises(StoreError, match=r"steps\.store\.migrate"):
        reopen(old)
    with pytest.raises(StoreError, match="is being migrated"):
        Collector(old, Retention()).remove()


def test_a_run_that_opened_the_store_before_works_on_no_stage(old: Store) -> None:
    old.swap_layout(old.read_layout(), Marker(1, 2).text)
    with pytest.raises(StoreError, match="is being migrated"):
        cached_stage(old, STAGE, lambda: pytest.fail("worked on a store that is being migrated"))
    assert leases.living(old) == {}


@pytest.mark.parametrize("key", ["stages/a/1", "collection"])
def test_a_migration_beside_a_living_lease_is_refused(
    old: Store, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with lease(old, key):
        assert main(options(old)) == 1
        assert f"is in use: host {os.uname().nodename} pid {os.getpid()} works on {key}" in (
            capsys.readouterr().err
        )
        assert main([*options(old), "--dry-run"]) == 0
        assert f"would be refused: host {os.uname().nodename} pid" in capsys.readouterr().out
    assert documents(old) == REPORTS
    assert old.read_layout() == '{"version": 1}'
    assert main(options(old)) == 0


def test_a_run_that_comes_as_the_migration_begins_is_seen(
    old: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([{}, {"stages/a/1": '{"host": "there", "pid": 1}'}])
    monkeypatch.setattr(module, "living", lambda _: next(found))
    with pytest.raises(StoreError, match="host there pid 1 works on stages/a/1"):
        migrate(old, print)
    assert documents(old) == REPORTS
    assert old.read_layout() == '{"version": 1}'


def test_of_two_migrations_one_works(old: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_S", 0.1)
    with lease(old, "migration"), pytest.raises(StoreError, match="migration is still held"):
        migrate(old, print)
    assert documents(old) == REPORTS


def test_a_marker_that_somebody_else_changed_is_left_alone(
    old: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Marker(2).text

    def changes(store: Store) -> Iterator[Change]:
        yield Change("another finishes first", lambda: store.swap_layout(store.read_layout(), theirs))

    monkeypatch.setattr(layout, "LAYOUT_VERSION", 3)
    monkeypatch.setattr(layout, "MIGRATIONS", dict.fromkeys((1, 2), Migration("x", changes)))
    with pytest.raises(StoreError, match="was changed by somebody else"):
        migrate(old, print)
    assert old.read_layout() == theirs


def test_a_dry_run_changes_nothing(
    old: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layout, "LAYOUT_VERSION", 3)
    monkeypatch.setitem(layout.MIGRATIONS, 2, move_all("finished/", "done/"))
    before = old.list_documents("")
    assert main([*options(old), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "document reports/3 becomes finished/3" in shown
    assert "layout version 2 to 3: finished/ becomes done/" in shown
    assert "nothing was changed" in shown
    assert old.list_documents("") == before
    assert old.read_layout() == '{"version": 1}'


@pytest.mark.parametrize("marker", [Marker(99), Marker(2, 3)], ids=["newer", "on its way to a newer one"])
def test_a_store_of_a_newer_layout_is_not_migrated(
    old: Store, marker: Marker, capsys: pytest.CaptureFixture[str]
) -> None:
    old.swap_layout(old.read_layout(), marker.text)
    newest = marker.migrating_to or marker.version
    message = f"layout version {marker.version}, this program reads 2; use a version of this program that reads {newest}"
    with pytest.raises(StoreError, match=message):
        layout.check_layout(old)
    assert main(options(old)) == 1
    assert message in capsys.readouterr().err
    assert old.read_layout() == marker.text


def test_a_layout_that_no_migration_leads_on_from_is_refused(
    old: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LAYOUT_VERSION", 3)
    for use in (lambda: layout.check_layout(old), lambda: migrate(old, print)):
        with pytest.raises(StoreError, match="no migration leads on from version 2"):
            use()
    assert documents(old) == REPORTS


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": "one"}', '{"version": 1, "migrating_to": 5}', '{"version": null}']
)
def test_a_marker_that_names_no_version_is_refused(store: Store, text: str) -> None:
    store.swap_layout(store.read_layout(), text)
    with pytest.raises(StoreError, match=r"layout\.json of the store .* must name a version"):
        layout.check_layout(store)


def test_a_place_without_a_store_is_not_migrated(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(store, LocalStore):
        with pytest.raises(SystemExit):
            main(["--store", str(tmp_path / "none")])
        assert not (tmp_path / "none").exists()
    else:
        assert main(options(store)) == 1
    assert "there is no store in" in capsys.readouterr().err
