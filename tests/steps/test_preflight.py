"""`start`: what is wrong with base, data or evaluators fails there."""

from pathlib import Path

import pytest

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.data import RawData
from steps import preflight
from steps.context import StageContext
from steps.errors import ConfigError, DataError
from steps.file_hashes import FileHashes
from steps.input_folders import input_identities, raw_data
from steps.inputs import StageInputs, fetch_folder
from steps.pretraining.micro import write_micro_openclip
from steps.store import LocalStore


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
