"""Damaged checkpoints are recognised, passed over, and no longer among the two; what is no damage is not called so."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steps.files.errors import CheckpointError, DamagedError, DiskFullError, StoreError
from steps.training.checkpoint import STATE, TENSORS, Checkpoint, checkpoint_folders, read_checkpoint
from steps.training.checkpoint_folder import CheckpointFolder
from tests.steps.store.test_disk_faults import child

ROOT = Path(__file__).resolve().parents[3]


def checkpoint(iteration: int, values: int = 3) -> Checkpoint:
    return Checkpoint(iteration, {"w": torch.full((values,), float(iteration))}, {"sums": {"loss": 1.25}})


def save(folder: CheckpointFolder, *iterations: int) -> None:
    for iteration in iterations:
        folder.save(checkpoint(iteration))


def kept(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in checkpoint_folders(folder)]


def latest(folder: CheckpointFolder) -> int:
    found = folder.load_latest()
    assert found is not None
    assert torch.equal(found.tensors["w"], torch.full_like(found.tensors["w"], float(found.iteration)))
    return found.iteration


def damage(folder: Path, *iterations: int) -> None:
    for iteration in iterations:
        (folder / f"checkpoint-{iteration:09d}" / TENSORS).write_bytes(b"damaged")


class FolderMirror:
    """A mirror in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def send(self, name: str, path: Path) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self.folder / name)

    def fetch(self, name: str, path: Path) -> None:
        if not (self.folder / name).is_file():
            raise StoreError(f"{name} is not in the store")
        shutil.copyfile(self.folder / name, path)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def below(self, folder: str) -> "FolderMirror":
        return FolderMirror(self.folder / folder)

    def complete(self) -> list[int]:
        states = (Path(name).parent.name for name in self.names() if name.endswith(STATE))
        return sorted(int(name.removeprefix("checkpoint-")) for name in states)


def test_a_wrong_bit_of_the_state_is_recognised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(CheckpointFolder(tmp_path), 38, 39)
    path = tmp_path / "checkpoint-000000039" / STATE
    path.write_text(path.read_text().replace('"loss": 1.25', '"loss": 1.35'))
    assert latest(CheckpointFolder(tmp_path)) == 38
    assert "does not have the hash it was written with" in caplog.text


def test_a_checkpoint_under_the_name_of_another_is_damaged(tmp_path: Path) -> None:
    save(CheckpointFolder(tmp_path), 38)
    (tmp_path / "checkpoint-000000038").rename(tmp_path / "checkpoint-000000039")
    with pytest.raises(DamagedError, match="holds the checkpoint of iteration 38"):
        read_checkpoint(tmp_path / "checkpoint-000000039")


def test_a_state_without_a_hash_is_damaged(tmp_path: Path) -> None:
    """Else one wrong bit in the hash's name would switch the check off."""
    save(CheckpointFolder(tmp_path), 38)
    path = tmp_path / "checkpoint-000000038" / STATE
    path.write_text(path.read_text().replace('"seal"', '"sebl"'))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        CheckpointFolder(tmp_path).load_latest()


def test_a_damaged_checkpoint_is_not_one_of_the_two(tmp_path: Path) -> None:
    place = tmp_path / "work" / "checkpoints"  # made by the first checkpoint
    folder = CheckpointFolder(place)
    save(folder, 10, 20)
    damage(place, 20)
    assert latest(folder) == 10
    for iteration, expected in ((12, [10, 12]), (14, [12, 14])):
        save(folder, iteration)
        assert kept(place) == expected


def test_the_newest_damaged_one_stays_for_a_look_until_the_next_start(tmp_path: Path) -> None:
    mirror = FolderMirror(tmp_path / "mirror")
    with CheckpointFolder(tmp_path / "disk", mirror) as folder:
        save(folder, 10)
    save(CheckpointFolder(tmp_path / "disk"), 20, 30)
    damage(tmp_path / "disk", 20, 30)
    with CheckpointFolder(tmp_path / "disk", mirror) as folder:
        assert latest(folder) == 10
        assert {path.name for path in (tmp_path / "disk").iterdir()} == {
            "checkpoint-000000010",
            ".damaged-checkpoint-000000030",
        }
        save(folder, 15)
        assert kept(tmp_path / "disk") == [10, 15]
    with CheckpointFolder(tmp_path / "disk", mirror) as folder:
        assert latest(folder) == 15
    assert list((tmp_path / "disk").glob(".*")) == []


def test_while_all_are_damaged_none_goes(tmp_path: Path) -> None:
    """Were they put aside, the next attempt would start over."""
    save(CheckpointFolder(tmp_path), 10, 20)
    damage(tmp_path, 10, 20)
    for _ in range(2):
        with CheckpointFolder(tmp_path) as folder, pytest.raises(CheckpointError, match="none of the 2"):
            folder.load_latest()


def test_what_is_damaged_in_the_mirror_is_not_one_of_the_two_there(tmp_path: Path) -> None:
    mirror = FolderMirror(tmp_path / "mirror")
    with CheckpointFolder(tmp_path / "old", mirror) as folder:
        save(folder, 10)
    for iteration in (20, 30):
        with CheckpointFolder(tmp_path / "old", mirror) as folder:
            save(folder, iteration)
    for name in mirror.names():
        if name.startswith("checkpoint-000000030"):
            (mirror.folder / name).write_bytes(b"damaged")
    for number, (iteration, expected) in enumerate([(22, [20, 22, 30]), (24, [22, 24, 30])]):
        with CheckpointFolder(tmp_path / f"new {number}", mirror) as folder:
            assert latest(folder) == iteration - 2
            save(folder, iteration)
        assert mirror.complete() == expected
    with CheckpointFolder(tmp_path / "newest", mirror) as folder:
        assert latest(folder) == 24
        save(folder, 30)  # in the place of the damaged one
    assert mirror.complete() == [24, 30]
    assert latest(CheckpointFolder(tmp_path / "last", mirror)) == 30


def test_tensors_that_the_mirror_lacks_are_damage(tmp_path: Path) -> None:
    mirror = FolderMirror(tmp_path / "mirror")
    with CheckpointFolder(tmp_path / "old", mirror) as folder:
        save(folder, 10)
        folder.close()
        save(folder, 20)
    for name in mirror.names():
        if name.startswith("checkpoint-000000020") and not name.endswith(STATE):
            mirror.remove(name)
    assert latest(CheckpointFolder(tmp_path / "new", mirror)) == 10


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (StoreError("reading failed: no answer"), StoreError),
        (OSError(errno.EIO, "input/output error"), OSError),
        (TimeoutError("no answer"), TimeoutError),
        (OSError(errno.ENOSPC, "no space left on device"), DiskFullError),
    ],
    ids=["store", "disk", "time-out", "full disk"],
)
def test_a_store_or_disk_that_fails_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: type[Exception]
) -> None:
    """A message that advises to remove the checkpoints would cost the training."""
    mirror = FolderMirror(tmp_path / "mirror")
    with CheckpointFolder(tmp_path / "old", mirror) as folder:
        save(folder, 10)

    def fails(name: str, path: Path) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(mirror, "fetch", fails)
        with pytest.raises(expected) as raised:
            CheckpointFolder(tmp_path / "new", mirror).load_latest()
    assert not isinstance(raised.value, DamagedError)
    assert latest(CheckpointFolder(tmp_path / "new", mirror)) == 10


def test_a_disk_that_is_full_while_fetching_is_said(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path / "old", FolderMirror(tmp_path / "mirror")) as folder:
        folder.save(checkpoint(10, values=1 << 20))
    code = (
        "from pathlib import Path; from steps.files.errors import DiskFullError\n"
        "from tests.steps.training.test_checkpoint_damage import CheckpointFolder, FolderMirror\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "try:\n    CheckpointFolder(folder / 'new', FolderMirror(folder / 'mirror')).load_latest()\n"
        "except DiskFullError as error:\n    print(error)"
    )
    assert "no space left for a checkpoint" in child(code, file_limit=1 << 20)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_checkpoint_that_the_disk_does_not_give_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(CheckpointFolder(tmp_path), 10, 20)

    def fails(path: Path, *arguments: object) -> bytes:
        raise OSError(errno.EIO, "input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fails)
        with pytest.raises(OSError, match="input/output error.*000000020"):
            CheckpointFolder(tmp_path).load_latest()
    assert kept(tmp_path) == [10, 20]


KILLED = """
import os, signal
from pathlib import Path
from steps.training import checkpoint as module
from tests.steps.training.test_checkpoint_damage import CheckpointFolder, checkpoint, save
folder = CheckpointFolder(Path({folder!r}))
save(folder, 10)
def die(*arguments, **options): os.kill(os.getpid(), signal.SIGKILL)
original = module.save_file
def half(tensors, path):
    original(tensors, path)
    os.truncate(path, os.path.getsize(path) // 2)
    die()
{fault}
save(folder, 20)
"""


@pytest.mark.parametrize(
    "fault",
    ["module.save_file = half", "module.write_sealed = die", "Path.rename = die"],
    ids=["within the tensors", "before the state", "before the rename"],
)
def test_a_kill_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing under a final name is ever incomplete: the one before is found without any fall-back."""
    code = KILLED.format(folder=str(tmp_path), fault=fault)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert kept(tmp_path) == [10]
    with CheckpointFolder(tmp_path) as folder:
        assert latest(folder) == 10
        assert caplog.text == ""
        save(folder, 20)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "checkpoint-000000010",
        "checkpoint-000000020",
    ]
