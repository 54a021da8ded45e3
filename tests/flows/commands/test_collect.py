"""The collector's command line: it tells, and removes only when asked to."""

import os
from pathlib import Path
from types import ModuleType

import pytest

from artifacts_schema.run_configs import StoreConfig
from flows.commands import collect, fsck
from flows.commands.collect import main
from steps.cache.leases import in_use
from steps.store import LocalStore
from tests.conftest import MakeS3


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"orphan")
    os.utime(store.path_of(ref), (1e9, 1e9))
    assert main(["--store", str(tmp_path)]) == 0
    assert "would remove 0 runs, 0 documents, 1 objects" in capsys.readouterr().out
    assert store.has(ref.sha256)
    with in_use(store, "draw"):
        assert main(["--store", str(tmp_path), "--delete"]) == 1
    assert "not now: " in capsys.readouterr().err
    assert main(["--store", str(tmp_path), "--delete"]) == 0
    assert not store.has(ref.sha256)
    for refused in (
        ["--store", str(tmp_path / "none")],
        ["--min-age-hours", "0"],
        ["--min-age-hours", "nan"],
    ):
        with pytest.raises(SystemExit):
            main(refused)


def test_the_cache_of_a_store_on_s3(
    make_s3: MakeS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_s3()
    partial = tmp_path / "cache" / "objects" / ".partial-x"
    partial.write_bytes(b"half")
    os.utime(partial, (1e9, 1e9))
    options = ["--store", store.root, "--local", str(tmp_path / "cache"), "--cache"]
    assert main([*options, "--delete"]) == 0
    assert "removed 0 runs, 0 documents, 0 objects, 1 partial files" in capsys.readouterr().out
    LocalStore(tmp_path / "store")
    for refused in (["--store", str(tmp_path / "store"), "--cache"], [*options, "--drop", "1"]):
        with pytest.raises(SystemExit):
            main(refused)


def test_a_run_to_drop_that_there_is_not_stops_before_anything_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"orphan")
    os.utime(store.path_of(ref), (1e9, 1e9))
    with pytest.raises(SystemExit):
        main(["--store", str(tmp_path), "--drop", "17O4", "--delete"])
    assert "--drop names runs that the store does not know: 17O4" in capsys.readouterr().err
    assert store.has(ref.sha256)


@pytest.mark.parametrize("command", [collect, fsck])
def test_commands_find_the_store_where_flows_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: ModuleType
) -> None:
    """Below SNAPFUSION_HOME, whatever the working directory."""
    LocalStore(tmp_path / "home" / StoreConfig().root)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(command, "WORK_ROOT", tmp_path / "home")
    assert command.main([]) == 0
    assert not list((tmp_path / "elsewhere").iterdir())
