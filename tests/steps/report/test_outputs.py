"""What a run leaves for people is fetched from its store, whole and verified, and stays there as long as the run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef
from artifacts_schema.report import RunReport
from steps.cache.collector import Retention, find_garbage, remove
from steps.cache.notes import bundle_of_run, report_of_run
from steps.files.errors import DamagedError, SnapFusionError
from steps.report.outputs import fetch_outputs
from steps.store import LocalStore, Store
from tests.conftest import MakeS3

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "tests" / "fixtures" / "records" / "report_v1.json"
FILES = {
    "bundle/manifest.json": b"{}",
    "bundle/Unet.mlpackage/Data/weight.bin": b"weights",
    "pictures/captions.json": b"[]",
}


def finish(store: Store, run: str, files: dict[str, bytes] = FILES) -> RunReport:
    """The report of a run with these outputs."""
    example: Any = read_record(EXAMPLE.read_text())
    outputs = FolderRef(files={name: store.put_bytes(data) for name, data in files.items()})
    folder = f"/elsewhere/{run}"
    report: RunReport = example.model_copy(
        update={"name": f"run {run}", "outputs": outputs, "folder": folder}
    )
    report_of_run(store, run, report, [])
    return report


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def check_fetched(store: Store, run: RunReport, folder: Path) -> None:
    fetch_outputs(store, run, folder)
    report = f"{run.to_json()}\n".encode()
    assert files_of(folder) == FILES | {"report.json": report}
    assert RunReport.from_json(report.decode()) == run


def test_outputs_are_fetched_over_an_earlier_copy_which_is_the_users_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    run = finish(store, "7")
    check_fetched(store, run, tmp_path / "there")
    (tmp_path / "there" / "bundle" / "manifest.json").write_text("changed")
    check_fetched(store, run, tmp_path / "there")


def test_another_machine_fetches_them_from_s3(make_s3: MakeS3, tmp_path: Path) -> None:
    run = finish(make_s3("outputs"), "7")
    check_fetched(make_s3("outputs", local="of another machine"), run, tmp_path / "there")


def test_a_damaged_file_is_not_handed_out(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    run = finish(store, "7")
    assert run.outputs
    path = store.path_of(run.outputs.files["bundle/manifest.json"])
    path.chmod(0o600)
    path.write_bytes(b"[]")
    with pytest.raises(DamagedError, match="is damaged"):
        fetch_outputs(store, run, tmp_path / "there")
    assert not (tmp_path / "there" / "report.json").exists()


def test_a_report_cannot_write_elsewhere(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    with pytest.raises(DamagedError, match="leads out of"):
        fetch_outputs(store, finish(store, "7", {"../escaped": b"x"}), tmp_path / "there")
    assert not (tmp_path / "escaped").exists()


def test_a_run_that_stored_none_says_where_they_are(tmp_path: Path) -> None:
    report = RunReport.from_json(EXAMPLE.read_text())
    with pytest.raises(SnapFusionError, match="stored no outputs; they are in runs/1 on the machine"):
        fetch_outputs(LocalStore(tmp_path), report, tmp_path / "there")


def test_outputs_stay_as_long_as_their_run(store: Store) -> None:
    def collected(*drop: str) -> set[str]:
        return set(remove(store, lambda: find_garbage(store, Retention(drop=drop, min_age_s=-60.0))).objects)

    finish(store, "1", {"bundle/a": b"shared", "bundle/b": b"of 1"})
    finish(store, "2", {"bundle/a": b"shared", "bundle/b": b"of 2"})
    of_1 = store.put_bytes(b"of 1").sha256
    # Of a run that has a bundle and no report yet.
    unfinished = FolderRef(files={"manifest.json": store.put_bytes(b"of 3")})
    bundle_of_run(store, "3", unfinished)
    assert collected() == set()
    assert collected("1") == {of_1}
    assert collected("3") == {unfinished.files["manifest.json"].sha256}


def test_the_command_fetches_the_newest_run_or_the_named_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    for age, run in enumerate(("new", "1720000000000000")):
        finish(store, run)
        path = store.folder / "documents" / "reports" / f"{run}.json"
        os.utime(path, (1e9 - age, 1e9 - age))
    home, found = tmp_path / "home", {}
    for name, arguments in {"newest": [], "named": ["1720000000000000", "--to", "there"]}.items():
        result = subprocess.run(
            [sys.executable, "-m", "flows.commands.outputs", "--store", str(store.folder), *arguments],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "SNAPFUSION_HOME": str(home)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        found[name] = Path(result.stdout.strip())
        assert set(files_of(found[name])) == {*FILES, "report.json"}
    assert found == {"newest": home / ".snapfusion" / "runs" / "new", "named": tmp_path / "there"}
