"""Checkpoints with a mirror: another machine goes on from them, whatever happens to disk, server and process."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import torch

from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import CheckpointError, StoreError
from steps.store.base import Mirror
from steps.store.s3 import S3Store
from steps.training.checkpoint import Checkpoint, checkpoint_folders
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.loop import train
from tests.conftest import MakeS3
from tests.steps.training.test_loop import CONFIG, StopAfter, model, regression

ROOT = Path(__file__).resolve().parents[3]
KEY = "robust_training/abc"


@pytest.fixture
def make_s3(make_s3: MakeS3) -> MakeS3:
    """Names are shared within a test, never between tests: all of them use one server."""
    own = uuid.uuid4().hex
    return lambda name, **options: make_s3(f"{own}/{name}", **options)


def checkpoint(iteration: int) -> Checkpoint:
    return Checkpoint(iteration, {"w": torch.full((3,), float(iteration))}, {"note": iteration})


def folder_of(store: S3Store) -> CheckpointFolder:
    return CheckpointFolder(store.work_folder(KEY) / "checkpoints", store.mirror(KEY))


def new_machine(make_s3: MakeS3, name: str = "shared") -> CheckpointFolder:
    """The same bucket, and nothing on disk."""
    shutil.rmtree(make_s3(name, local="new").local.folder)
    return folder_of(make_s3(name, local="new"))


def latest(folder: CheckpointFolder) -> int:
    found = folder.load_latest()
    assert found is not None
    assert torch.equal(found.tensors["w"], torch.full((3,), float(found.iteration)))
    return found.iteration


def saved(make_s3: MakeS3, *iterations: int) -> S3Store:
    store = make_s3("shared")
    for iteration in iterations:
        with folder_of(store) as checkpoints:
            checkpoints.save(checkpoint(iteration))
    return store


def test_another_machine_finds_the_last_checkpoint(make_s3: MakeS3) -> None:
    saved(make_s3, 1, 2, 3)
    assert latest(new_machine(make_s3)) == 3


def test_two_are_kept_in_the_store(make_s3: MakeS3) -> None:
    store = saved(make_s3, 1, 2, 3)
    mirror = store.mirror(KEY)
    assert mirror is not None
    assert sorted({name.partition("/")[0] for name in mirror.names()}) == [
        "checkpoint-000000002",
        "checkpoint-000000003",
    ]


def test_a_training_continues_on_another_machine_and_ends_equal(make_s3: MakeS3, tmp_path: Path) -> None:
    def run(folder: Path | CheckpointFolder, progress: StopAfter | None = None) -> dict[str, torch.Tensor]:
        return dict(
            train(
                model(), regression, training=CONFIG, samples=13, seed=5, folder=folder, progress=progress
            ).model.state_dict()
        )

    straight = run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(folder_of(make_s3("shared")), StopAfter(17, KeyboardInterrupt()))
    there = new_machine(make_s3)
    assert (found := there.load_latest()) is not None
    assert 0 < found.iteration <= 17
    continued = run(new_machine(make_s3))
    assert all(torch.equal(value, continued[name]) for name, value in straight.items())


def test_a_killed_training_continues_from_what_was_sent(make_s3: MakeS3, tmp_path: Path) -> None:
    """SIGKILL while a thread may be sending, and the machine is gone with its disk."""
    store = make_s3("shared", local="killed")
    code = (
        "import os, signal; from pathlib import Path; from steps.store import open_store\n"
        "from artifacts_schema.config import StoreConfig\n"
        "from tests.steps.training.test_checkpoint_folder import checkpoint, folder_of\n"
        f"store = open_store(StoreConfig(root={store.root!r}, local='killed'), Path({str(tmp_path)!r}))\n"
        "for i in range(1, 30):\n"
        "    c = folder_of(store) if i == 1 else c\n"
        "    c.save(checkpoint(i))\n"
        "    while i <= 3 and not any(f'{i:09d}/state' in n for n in c._mirror.names()): pass\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert latest(new_machine(make_s3)) >= 3


def test_damage_on_disk_is_healed_from_the_store(make_s3: MakeS3, caplog: pytest.LogCaptureFixture) -> None:
    store = saved(make_s3, 1, 2)
    newest = checkpoint_folders(store.work_folder(KEY) / "checkpoints")[-1]
    (newest / "tensors.safetensors").write_bytes(b"damaged")
    assert latest(folder_of(store)) == 2
    assert "on disk is damaged" in caplog.text


def test_damage_in_the_store_falls_back_to_the_one_before(
    make_s3: MakeS3, caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(make_s3, 1, 2)
    mirror = store.mirror(KEY)
    assert mirror is not None
    for name in mirror.names():
        if name.startswith("checkpoint-000000002") and not name.endswith("state.json"):
            store.bucket.write(f"work/{KEY}/{name}", "damaged")
    assert latest(new_machine(make_s3)) == 1
    assert "on mirror is damaged" in caplog.text


def test_only_damaged_ones_do_not_start_over_silently(make_s3: MakeS3) -> None:
    store = saved(make_s3, 1, 2)
    mirror = store.mirror(KEY)
    assert mirror is not None
    for name in mirror.names():
        store.bucket.write(f"work/{KEY}/{name}", "damaged")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        new_machine(make_s3).load_latest()


def test_a_sending_that_was_cut_off_is_no_checkpoint(make_s3: MakeS3) -> None:
    store = saved(make_s3, 1, 2)
    mirror = store.mirror(KEY)
    assert mirror is not None
    mirror.remove("checkpoint-000000002/state.json")
    assert latest(new_machine(make_s3)) == 1


class SlowMirror:
    """Keeps names only; sending waits for a permit, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.sent: list[str] = []
        self.permit = threading.Semaphore(0)
        self.fails = fails

    def names(self) -> list[str]:
        return list(self.sent)

    def send(self, name: str, path: Path) -> None:
        if self.fails:
            raise StoreError("no answer")
        self.permit.acquire()
        path.read_bytes()  # it is still there, however many newer ones were saved meanwhile
        self.sent.append(name)

    def fetch(self, name: str, path: Path) -> None:
        raise StoreError("no answer")

    def remove(self, name: str) -> None:
        self.sent.remove(name)


def test_training_does_not_wait_for_a_slow_store_and_the_newest_is_sent(tmp_path: Path) -> None:
    mirror = SlowMirror()
    with CheckpointFolder(tmp_path, mirror) as checkpoints:
        for iteration in range(1, 9):
            checkpoints.save(checkpoint(iteration))  # returns though nothing can be sent yet
        mirror.permit.release(100)
    complete = [name for name in mirror.sent if name.endswith("state.json")]
    assert complete[-1] == "checkpoint-000000008/state.json"
    assert len(complete) <= 2


def test_after_sigterm_a_slow_store_is_waited_for_no_longer_than_the_grace_period(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = SlowMirror()
    started = time.monotonic()
    with CheckpointFolder(tmp_path, mirror, grace_s=0.3) as checkpoints:
        checkpoints.save(checkpoint(1))
        checkpoints.hurry()
    assert 0.2 < time.monotonic() - started < 5.0
    assert "was not sent to the store within" in caplog.text
    mirror.permit.release(100)
    assert latest(CheckpointFolder(tmp_path)) == 1


def test_sigterm_while_a_slow_store_is_waited_for_begins_the_grace_period_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = SlowMirror()
    with CheckpointFolder(tmp_path, mirror, grace_s=1.0) as checkpoints:
        checkpoints.save(checkpoint(1))
        timers = [threading.Timer(after_s, checkpoints.hurry) for after_s in [0.3 * i for i in range(60)]]
        for timer in timers:
            timer.start()
        checkpoints.close()
        assert any(timer.is_alive() for timer in timers)  # each of them would have put the end off
    assert caplog.text.count("was not sent to the store within") == 1
    for timer in timers:
        timer.cancel()
    mirror.permit.release(100)


def test_a_store_that_fails_does_not_stop_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror: Mirror = SlowMirror(fails=True)
    with CheckpointFolder(tmp_path, mirror) as checkpoints:
        checkpoints.save(checkpoint(1))
    assert "could not be sent to the store: no answer" in caplog.text
    assert latest(CheckpointFolder(tmp_path)) == 1


def test_the_interval_is_kept_with_a_mirror(tmp_path: Path) -> None:
    mirror = SlowMirror()
    mirror.permit.release(10_000)
    config: TrainingConfig = CONFIG.model_copy(update={"checkpoint_interval_s": 1e6})
    train(model(), regression, training=config, samples=13, seed=5, folder=CheckpointFolder(tmp_path, mirror))
    assert mirror.sent == []


def test_a_jump_of_the_wall_clock_does_not_shorten_the_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = SlowMirror()
    now = time.time()
    days = itertools.count()
    monkeypatch.setattr(time, "time", lambda: now + 86_400.0 * next(days))
    with CheckpointFolder(tmp_path, mirror, grace_s=30.0) as checkpoints:
        checkpoints.save(checkpoint(1))
        checkpoints.hurry()
        threading.Timer(0.3, mirror.permit.release, args=(100,)).start()
    assert mirror.sent[-1] == "checkpoint-000000001/state.json"
