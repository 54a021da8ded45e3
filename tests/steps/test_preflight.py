"""`start`: everything that can fail cheaply fails there."""

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.data import RawData
from steps import preflight
from steps.context import StageContext
from steps.errors import ConfigError, DataError, DiskFullError
from steps.file_hashes import FileHashes
from steps.input_folders import input_identities, raw_data
from steps.inputs import StageInputs, fetch_folder
from steps.pretraining.micro import write_micro_openclip
from steps.store import LocalStore

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_micro_openclip(tmp_path / "clip")
    return tmp_path


def config(**sections: dict[str, object]) -> SnapFusionConfig:
    clip = {"signal_clip": "clip", "measure_clip": "clip"}
    defaults = {"base": {"path": "micro"}, "data": {"limit": 4}, "evaluation": clip}
    return parse_config(defaults | sections)


def context(root: Path) -> StageContext:
    store = LocalStore(root / "store")
    return StageContext(stage="start", store=store, work=store.work_folder("start/x"), seed=0)


def test_plan_holds_everything_later_stages_read(root: Path) -> None:
    given = context(root)
    plan = preflight.run(config(), given, root, RawData(packages={"emoji": "2"}))
    assert plan.raw_data.packages == {"emoji": "2"}
    inputs = StageInputs(plan, given)
    assert inputs.base.latent_shape == (4, 16, 16)
    assert inputs.data.size("train") == 4
    assert inputs.signal_clip.size == 64
    assert inputs.folder("velocity_warm_start") is None


def test_too_little_disk_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1 << 20))
    with pytest.raises(DiskFullError, match=r"this run's store .* needs about .* 1\.0 MiB are free"):
        preflight.run(config(), context(root), root, RawData())


def test_grace_period_the_disk_cannot_meet_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_write_speed", lambda _: 1000.0)
    with pytest.raises(ConfigError, match=r"more than compute\.sigterm_grace_s = 10"):
        preflight.run(config(), context(root), root, RawData())


@pytest.mark.parametrize(
    ("export", "message"),
    [
        ({"program_check": {"timesteps": [999, 1000]}}, r"names \[1000\], the base's schedule ends at 999"),
        ({"components": ["unet", "safety_checker"]}, r"names safety_checker, the base .* has none"),
    ],
)
def test_export_that_must_fail_is_refused(export: dict[str, object], message: str, root: Path) -> None:
    base = SimpleNamespace(scheduler_config={"num_train_timesteps": 1000}, path=root)
    with pytest.raises(ConfigError, match=message):
        preflight.check_export(config(coreml_export=export), base)  # type: ignore[arg-type]


def test_missing_evaluator_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.signal_clip names .*nowhere"):
        input_identities(
            config(evaluation={"signal_clip": "nowhere", "measure_clip": "clip"}), root, RawData()
        )


def test_image_size_of_another_base_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size is 512, but the base draws 64"):
        preflight.run(config(data={"limit": 4, "image_size": 512}), context(root), root, RawData())


def test_missing_shards_fail_before_the_base_is_loaded(root: Path) -> None:
    with pytest.raises(DataError, match="shard"):
        shards = config(data={"source": "webdataset", "shards": ["a-{00..01}.tar"]})
        raw_data(shards.data, root, FileHashes(root / "hashes"))


def test_stored_folder_cannot_write_outside_its_copy(root: Path) -> None:
    from artifacts_schema.references import FolderRef
    from steps.errors import StoreError

    given = context(root)
    ref = FolderRef(files={"../../escaped": given.store.put_bytes(b"x")})
    with pytest.raises(StoreError, match="leads out of it"):
        fetch_folder(given, ref, "base")


def test_identities_of_a_cached_run_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, steps.input_folders, flows.stages, flows.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
