import hashlib
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.bundle import BundleManifest, ComponentReport, DrawingScores
from steps.export import bundle as bundle_module
from steps.export.bundle import assemble_bundle
from steps.export.contract import unet_contract
from steps.files.errors import DamagedError, DiskFullError, ExportError, StoreError
from steps.store.local import LocalStore
from tests.steps.export.factories import SCHEDULE, fake_report, tokenizer_folder

ROUNDS = 25
GRID = (999, 874, 749, 624, 499, 374, 249, 124)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def reports(store: LocalStore, tmp_path: Path) -> list[ComponentReport]:
    return [fake_report(store, tmp_path / "packages", c) for c in ("unet", "vae_decoder", "text_encoder")]


def _assemble(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path, **changes: Any
) -> BundleManifest:
    base = tmp_path / "base"
    if not base.exists():
        tokenizer_folder(base)
    options: dict[str, Any] = {
        "steps": 8,
        "guidance_scale": 3.0,
        "schedule": {**SCHEDULE, "_class_name": "DDIMScheduler"},
        "timesteps": GRID,
        "prediction_type": "v_prediction",
        "scaling_factor": 0.13,
        "weights": {"student_8": "ab"},
        "attribution": "CC BY-SA 4.0, OpenMoji",
    }
    return assemble_bundle(reports, base, store, tmp_path / "runs" / "bundle", **{**options, **changes})


def _left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "runs").iterdir()) if (tmp_path / "runs").exists() else []


def test_bundle_is_whole(reports: list[ComponentReport], store: LocalStore, tmp_path: Path) -> None:
    manifest = _assemble(reports, store, tmp_path)
    bundle = tmp_path / "runs" / "bundle"
    read = BundleManifest.from_json((bundle / "manifest.json").read_text())
    assert read == manifest and manifest.complete
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {*manifest.files, "manifest.json"}
    assert {"vocab.json", "merges.txt", "LICENSE", "finalize_on_mac.sh"} < files
    assert "Stable_Diffusion_version_snapfusion_unet.mlpackage/Data/model.mlmodel" in files
    assert "OpenMoji" in (bundle / "LICENSE").read_text()
    assert manifest.schedule == SCHEDULE and manifest.timesteps == GRID
    assert (manifest.model_prediction, manifest.output_prediction) == ("v_prediction", "epsilon")
    assert _left(tmp_path) == ["bundle"]


def test_manifest_names_what_the_bundle_was_made_of(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    manifest = _assemble(reports, store, tmp_path, made_of={"start": "cd"})
    components = {f"coreml_export {report.component}": report.identity() for report in reports}
    assert manifest.made_of == {"start": "cd"} | components


def test_unmeasured_parity_is_said(reports: list[ComponentReport], store: LocalStore, tmp_path: Path) -> None:
    _assemble(reports, store, tmp_path)
    written = json.loads((tmp_path / "runs" / "bundle" / "manifest.json").read_text())
    for component in written["components"].values():
        assert component["parity"] is None and component["parity_note"] == "not measured"


def test_new_bundle_replaces_the_old(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    _assemble(reports, store, tmp_path)
    (tmp_path / "runs" / "bundle" / "stale").write_text("")
    manifest = _assemble(reports[:1], store, tmp_path)
    assert not manifest.complete
    assert not (tmp_path / "runs" / "bundle" / "stale").exists()
    assert _left(tmp_path) == ["bundle"]


def test_failure_leaves_no_half_bundle(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    missing = next(iter(reports[2].package.files.values()))
    store.path_of(missing).unlink()
    with pytest.raises(StoreError):
        _assemble(reports, store, tmp_path)
    assert _left(tmp_path) == []


def test_failure_keeps_the_old_bundle(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    before = _assemble(reports, store, tmp_path)
    for path in (tmp_path / "base" / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(ExportError, match="vocab.json"):
        _assemble(reports, store, tmp_path)
    kept = (tmp_path / "runs" / "bundle" / "manifest.json").read_text()
    assert BundleManifest.from_json(kept) == before
    assert _left(tmp_path) == ["bundle"]


def test_too_little_disk_is_refused_before_anything_is_written(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(DiskFullError, match=r"the bundle needs about 16\.0 MiB in .*1\.0 MiB are free"):
        _assemble(reports, store, tmp_path)
    assert _left(tmp_path) == []


def test_stale_folder_without_a_manifest_is_never_reused(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    old = tmp_path / "runs" / "bundle" / reports[0].package_name / "Data"
    old.mkdir(parents=True)
    (old / "model.mlmodel").write_bytes(b"of an older run")
    (old / "weights.bin").write_bytes(b"of an older run")
    manifest = _assemble(reports, store, tmp_path)
    bundle = tmp_path / "runs" / "bundle"
    assert not (bundle / reports[0].package_name / "Data" / "weights.bin").exists()
    for name, file in manifest.files.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == file.sha256


def test_drawing_that_fails_keeps_the_old_bundle(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    before = _assemble(reports, store, tmp_path)

    def draw(folder: Path) -> DrawingScores:
        assert (folder / "manifest.json").is_file()
        raise ExportError("bundle: off")

    with pytest.raises(ExportError, match="off"):
        _assemble(reports, store, tmp_path, draw=draw)
    kept = (tmp_path / "runs" / "bundle" / "manifest.json").read_text()
    assert BundleManifest.from_json(kept) == before
    assert _left(tmp_path) == ["bundle"]


def test_rename_that_fails_restores_the_old_bundle(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _assemble(reports, store, tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ExportError, match="cannot be moved"):
        _assemble(reports, store, tmp_path, attribution="another")
    kept = (tmp_path / "runs" / "bundle" / "manifest.json").read_text()
    assert BundleManifest.from_json(kept) == before


def test_an_equal_bundle_of_another_run_stays(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    first = _assemble(reports, store, tmp_path)
    bundle = tmp_path / "runs" / "bundle"
    place = bundle.stat().st_ino
    assert _assemble(reports, store, tmp_path).identity() == first.identity()
    assert bundle.stat().st_ino == place
    (bundle / "LICENSE").write_text("changed")
    _assemble(reports, store, tmp_path)
    assert "OpenMoji" in (bundle / "LICENSE").read_text()
    assert _left(tmp_path) == ["bundle"]


def _publish_rounds(base: Path, name: str, barrier: Any, failures: Any) -> None:
    """One of two processes that put equal bundles in the place of an old one, at the same moment.

    The moment in which the place is empty is made longer.
    """
    rename = Path.rename

    def slow(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        time.sleep(0.02)
        return moved

    Path.rename = slow  # type: ignore[method-assign,assignment] # of this process, which ends with the rounds
    for number in range(ROUNDS):
        scratch = base / f"{number}" / name
        shutil.copytree(base / "whole", scratch / "new")
        barrier.wait(60)
        try:
            bundle_module._publish(scratch / "new", base / f"{number}" / "bundle", scratch)
        except Exception as error:
            failures.put(f"{type(error).__name__}: {error}")


def test_two_runs_publish_at_once(reports: list[ComponentReport], store: LocalStore, tmp_path: Path) -> None:
    manifest = _assemble(reports, store, tmp_path)
    (tmp_path / "runs" / "bundle").rename(tmp_path / "whole")
    for number in range(ROUNDS):
        old = tmp_path / f"{number}" / "bundle"
        old.mkdir(parents=True)
        (old / "stale").write_text("of an older run")
    context = multiprocessing.get_context("fork")  # they run no torch, and need not load it again
    barrier, failures = context.Barrier(2), context.SimpleQueue()
    runs = [
        context.Process(target=_publish_rounds, args=(tmp_path, name, barrier, failures))
        for name in ("one", "two")
    ]
    for process in runs:
        process.start()
    for process in runs:
        process.join(120)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in runs] == [0, 0]
    for number in range(ROUNDS):
        bundle = tmp_path / f"{number}" / "bundle"
        files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
        assert files == {*manifest.files, "manifest.json"}


def test_tokenizer_json_is_enough(reports: list[ComponentReport], store: LocalStore, tmp_path: Path) -> None:
    folder = tmp_path / "base" / "tokenizer"
    folder.mkdir(parents=True)
    model = {"vocab": {"ä</w>": 0}, "merges": [["a", "b"], "c d"]}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    _assemble(reports, store, tmp_path)
    bundle = tmp_path / "runs" / "bundle"
    assert json.loads((bundle / "vocab.json").read_text()) == {"ä</w>": 0}
    assert (bundle / "merges.txt").read_text() == "#version: 0.2\na b\nc d\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "epsilon"}, "prediction type"),
        ({"scaling_factor": 0.5}, "scaling factor"),
        ({"steps": 4}, "grid of 4"),
        ({"timesteps": GRID[::-1]}, "falling grid"),
    ],
)
def test_what_does_not_fit_is_refused(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        _assemble(reports, store, tmp_path, **changes)
    assert _left(tmp_path) == []


def test_components_of_unlike_shapes_are_refused(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    for options, message in (
        ({"latent": (4, 8, 8), "width": 12}, "latents"),
        ({"latent": (4, 16, 16), "width": 13}, "text"),
    ):
        inputs, outputs = unet_contract(batch=2, tokens=7, **options)  # type: ignore[arg-type]
        other = fake_report(store, tmp_path / "other", "unet", inputs=inputs, outputs=outputs)
        with pytest.raises(ExportError, match=message):
            _assemble([other, *reports[1:]], store, tmp_path)


def test_component_given_twice_is_refused(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="one report per component"):
        _assemble([*reports, reports[0]], store, tmp_path)


def test_package_cannot_leave_the_bundle(
    reports: list[ComponentReport], store: LocalStore, tmp_path: Path
) -> None:
    ref = next(iter(reports[0].package.files.values()))
    bad = reports[0].package.model_copy(update={"files": {"../../x": ref}})
    with pytest.raises(DamagedError, match="leads out"):
        _assemble([reports[0].model_copy(update={"package": bad})], store, tmp_path)
    assert _left(tmp_path) == []
