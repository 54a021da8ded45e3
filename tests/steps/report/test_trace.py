"""From a bundle in hand to the run that made it, and to its data, code and configuration."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.bundle import BundleFile, BundleManifest
from artifacts_schema.readers import read_record
from artifacts_schema.report import RunReport
from steps.files.errors import StoreError
from steps.report.trace import config_differences, runs_of
from steps.store import LocalStore

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "tests" / "fixtures" / "records"


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


def made(tmp_path: Path, **changes: object) -> tuple[LocalStore, BundleManifest]:
    """A store with the run that made a bundle, and that bundle's manifest."""
    store, manifest, plan = LocalStore(tmp_path / "store"), stored("bundle_v1"), stored("run_plan_v1")
    made_of = manifest.made_of | {"start": plan.identity()}
    manifest = manifest.model_copy(update={"made_of": made_of} | changes)
    report: RunReport = stored("report_v1")
    inputs = report.inputs | {"bundle": manifest.identity(), "start": plan.identity()}
    store.put_document("reports/7", report.model_copy(update={"inputs": inputs}).to_json())
    store.put_document(f"records/{plan.identity()}", plan.to_json())
    return store, manifest


def test_the_run_that_ended_with_the_manifest_is_found(tmp_path: Path) -> None:
    store, manifest = made(tmp_path)
    store.put_document(
        "reports/8", stored("report_v1").model_copy(update={"inputs": {"bundle": "0"}}).to_json()
    )
    assert list(runs_of(store, manifest.to_json())) == ["7"]


def test_another_bundle_of_the_same_components_is_no_result_of_the_run(tmp_path: Path) -> None:
    store, manifest = made(tmp_path)
    other = manifest.model_copy(update={"guidance_scale": 7.5})
    with pytest.raises(StoreError, match="no report in the store .* names this bundle"):
        runs_of(store, other.to_json())


def test_only_what_differs_from_the_defaults_is_listed() -> None:
    found = config_differences(stored("report_v1").config)
    assert "data.limit = 32 (default: null)" in found
    assert not [line for line in found if line.startswith("data.source")]


def bundle(tmp_path: Path) -> Path:
    """A folder with a manifest and one file."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "LICENSE").write_text("free")
    digest = hashlib.sha256(b"free").hexdigest()
    _, manifest = made(tmp_path, files={"LICENSE": BundleFile(sha256=digest, bytes=4)})
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def trace(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.commands.trace", "bundle", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SNAPFUSION_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command_names_code_data_configuration_and_stages(tmp_path: Path) -> None:
    bundle(tmp_path)
    result = trace(tmp_path, "--store", str(tmp_path / "store"))
    assert result.returncode == 0, result.stderr
    report, plan = stored("report_v1"), stored("run_plan_v1")
    expected = (
        "run 7", report.code.commit, "as committed", plan.base_identity, "emoji 2.15.0", plan.data.identity(),
        "data.limit = 32", "version 4", report.stages[1].key, "cache miss", "made by SnapFusionFlow/1", "torch 2.15.0",
    )  # fmt: skip
    assert not [text for text in expected if text not in result.stdout]


def test_without_its_store_a_bundle_still_says_what_it_was_made_of(tmp_path: Path) -> None:
    bundle(tmp_path)
    result = trace(tmp_path, "--store", str(tmp_path / "other"))
    assert result.returncode == 1 and "names this bundle" in result.stderr
    assert stored("run_plan_v1").identity() in result.stdout


def test_a_bundle_that_was_changed_is_not_traced(tmp_path: Path) -> None:
    (bundle(tmp_path) / "LICENSE").write_text("mine")
    result = trace(tmp_path, "--store", str(tmp_path / "store"))
    assert result.returncode == 1 and "LICENSE: expected the hash" in result.stderr
    assert "run 7" not in result.stdout
