"""Faults of the disk, made for real: full, read-only, no room for temporary files. Nothing partial stays."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts_schema.references import FolderRef
from steps.inputs.context import StageContext
from steps.inputs.loaded import fetch_folder
from steps.store import LocalStore, Store, get_bytes

ROOT = Path(__file__).resolve().parents[3]
_DAC_OVERRIDE = 1  # the right of root to write where permissions say no
_DROP = 24  # prctl: PR_CAPBSET_DROP


def child(code: str, *, file_limit: int | None = None, without_override: bool = False) -> str:
    """What a program prints that runs under a limit."""
    if file_limit is not None:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({file_limit}, {file_limit}))\n{code}"
    if without_override:
        # Root may write anywhere; the program starts itself again without that right.
        drop = f"ctypes.CDLL(None).prctl({_DROP}, {_DAC_OVERRIDE}, 0, 0, 0)"
        code = f"import ctypes, os, sys; {drop}\nos.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


STORE = """
from pathlib import Path
from steps.files.errors import DiskFullError, StoreError
from steps.store import LocalStore
store = LocalStore(Path({folder!r}))
try:
    {action}
    print("no error")
except {error} as error:
    print(type(error).__name__, error)
"""


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    code = STORE.format(folder=str(tmp_path), action="store.put_bytes(bytes(4 << 20))", error="DiskFullError")
    assert "DiskFullError no space left" in child(code, file_limit=1 << 20)
    assert files(tmp_path / "objects") == []
    assert list((tmp_path / "objects").rglob(".partial-*")) == []


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    code = (
        "import torch; from pathlib import Path; from steps.files.errors import DiskFullError\n"
        "from steps.training.checkpoint import Checkpoint\n"
        "from steps.training.checkpoint_folder import CheckpointFolder\n"
        f"folder = CheckpointFolder(Path({str(tmp_path)!r}))\n"
        "folder.save(Checkpoint(1, {'w': torch.ones(10)}, {}))\n"
        "try:\n    folder.save(Checkpoint(2, {'w': torch.ones(1 << 20)}, {}))\n"
        "except DiskFullError as error:\n    print(error, folder.load_latest().iteration)"
    )
    assert "no space left for a checkpoint" in (said := child(code, file_limit=1 << 20))
    assert said.split()[-1] == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; skips where it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if (
        mount is None
        or umount is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run([umount, str(folder)], check=True)


def test_a_full_disk_keeps_what_was_stored(small_disk: Path) -> None:
    LocalStore(small_disk).put_bytes(b"kept")
    code = STORE.format(
        folder=str(small_disk), action="store.put_bytes(bytes(4 << 20))", error="DiskFullError"
    )
    assert "DiskFullError no space left" in child(code)
    store = LocalStore(small_disk)
    assert [entry.bytes for entry in store.objects()] == [4]
    store.put_bytes(b"there is room again")


def test_a_copy_of_an_input_that_does_not_fit_is_not_taken_for_whole(
    small_disk: Path, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    ref = FolderRef(files={"weights": store.put_bytes(bytes(4 << 20))})
    context = StageContext(
        stage="start", store=store, work=small_disk, seed=0
    )  # links do not reach another file system
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            fetch_folder(context, ref, "base")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_read_only_store_is_said_before_any_work(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"weights")
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        check = STORE.format(folder=str(tmp_path), action="store.check()", error="StoreError")
        assert "is read-only: cannot write to" in child(check, without_override=True)
        read = STORE.format(
            folder=str(tmp_path),
            action=f"from artifacts_schema.references import ObjectRef; "
            f"print(store.path_of(ObjectRef(uri='', sha256={ref.sha256!r}, bytes=7)).read_bytes())",
            error="StoreError",
        )
        assert "b'weights'" in child(read, without_override=True)
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_the_store_needs_no_room_for_temporary_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partial files lie beside where they will be: a full /tmp is no fault."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    data = bytes(17 << 20)
    assert get_bytes(store, store.put_bytes(data)) == data
    store.put_document("key", "{}")
    assert store.get_document("key") == "{}"
