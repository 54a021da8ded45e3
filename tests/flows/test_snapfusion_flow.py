"""The real flow, end to end on the smoke preset: what it leaves, what the cache does, and that `resume` loses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOW = ROOT / "flows" / "snapfusion_flow.py"
FAILING = Path(__file__).with_name("failing_flow.py")
SMOKE = ROOT / "configs" / "smoke.toml"
TRAININGS = (
    "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8",
    "decoder_distillation",
)  # fmt: skip


def run(
    home: Path, *arguments: str, script: Path = FLOW, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("METAFLOW")}
    # A container's root has no user name, and the caller stands somewhere else: both must work.
    for name in ("USER", "USERNAME", "SUDO_USER"):
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, os.path.relpath(script, home.parent), *arguments],
        cwd=home.parent,
        env=variables | {"SNAPFUSION_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def report(home: Path) -> dict[str, Any]:
    newest = max((home / ".snapfusion" / "runs").iterdir(), key=lambda folder: int(folder.name))
    found: dict[str, Any] = json.loads((newest / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("finished") / "home"
    result = run(home, "--config", "config", str(SMOKE), "run")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return home, result.stdout


@pytest.mark.slow
def test_run_leaves_bundle_report_and_pictures(finished: tuple[Path, str]) -> None:
    home, output = finished
    found = report(home)
    folder, bundle = Path(found["folder"]), Path(found["bundle"])
    assert {"vocab.json", "merges.txt", "manifest.json"} <= {path.name for path in bundle.iterdir()}
    assert len(list(bundle.glob("*.mlpackage"))) == 3
    pictures = {path.name for path in (folder / "pictures").glob("*.png")}
    assert len(pictures) == 5 and "torch_above_bundle_below.png" in pictures
    for expected in (str(bundle), str(folder / "report.json"), "card view", "python -m flows.draw"):
        assert expected in output


@pytest.mark.slow
def test_exported_packages_are_measured_against_torch(finished: tuple[Path, str]) -> None:
    home, _ = finished
    found = report(home)
    for component in ("text_encoder", "unet", "vae_decoder"):
        exact, rounded = (
            found["headline"][f"coreml.{component}.psnr_{name}_db"] for name in ("exact", "rounded")
        )
        assert exact >= 65 and 50 <= rounded <= exact
    manifest = json.loads((Path(found["bundle"]) / "manifest.json").read_text())
    assert manifest["drawing"]["worst_psnr_db"] >= 30
    assert manifest["drawing"]["psnr_db"]["median"] == found["headline"]["coreml.bundle.image_psnr_db"]


@pytest.mark.slow
def test_a_smoke_run_is_labelled_as_one(finished: tuple[Path, str]) -> None:
    home, output = finished
    assert any("smoke" in label for label in report(home)["labels"])
    assert "no number here means anything" in output


@pytest.mark.slow
def test_every_stage_is_in_the_report(finished: tuple[Path, str]) -> None:
    home, _ = finished
    names = {stage["stage"] for stage in report(home)["stages"]}
    assert set(TRAININGS) <= names
    assert {"start", "latency_profile", "coreml_export unet", "evaluation student_8_small_decoder"} <= names


@pytest.mark.slow
def test_a_picture_can_be_drawn_from_the_finished_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    home, _ = finished
    result = subprocess.run(
        [sys.executable, "-m", "flows.draw", "red flag", "--output", str(tmp_path / "flag.png")],
        env=os.environ | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "flag.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_resume_runs_the_failed_stage_again_and_ends_with_the_same_weights(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    config = tmp_path / "short.toml"
    short = '[coreml_export]\ncomponents = ["text_encoder"]\n'
    variants = 'variants = ["base_50", "base_8", "student_8", "student_8_small_decoder"]'
    text = SMOKE.read_text().replace(variants, 'variants = ["base_8"]') + short
    config.write_text(text)
    marker = str(tmp_path / "failed")
    broken = run(home, "--config", "config", str(config), "run", script=FAILING, FAILED_ONCE=marker)
    assert broken.returncode != 0
    assert "injected failure" in broken.stdout + broken.stderr
    resumed = run(home, "resume", script=FAILING, FAILED_ONCE=marker)
    assert resumed.returncode == 0, resumed.stdout[-4000:]
    assert "velocity_finetuning: cache" not in resumed.stdout  # cloned by Metaflow, not run again
    assert "decoder_distillation: cache miss" in resumed.stdout
    first, second = report(finished[0])["inputs"], report(home)["inputs"]
    assert {name: first[name] for name in TRAININGS} == {name: second[name] for name in TRAININGS}


def test_refused_configuration_is_one_clean_message(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[robust_training]\ndrop_probabilty = 0.1\n")
    result = run(tmp_path / "home", "--config", "config", "bad.toml", "run")
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "did you mean 'robust_training.drop_probability'" in output
    assert "Traceback" not in output


def test_a_store_that_does_not_answer_fails_before_any_work(tmp_path: Path) -> None:
    config = tmp_path / "s3.toml"
    store = '[store]\nroot = "s3://bucket/x"\nendpoint = "http://127.0.0.1:9"\nattempts = 1\n'
    config.write_text(SMOKE.read_text() + store)
    secret = "WITHHELD0123456789"
    result = run(
        tmp_path / "home", "--config", "config", "s3.toml", "run",
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE", AWS_SECRET_ACCESS_KEY=secret, AWS_DEFAULT_REGION="us-east-1",
    )  # fmt: skip
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "the server does not answer; check store.endpoint or AWS_ENDPOINT_URL_S3" in output
    assert "start: cache" not in output
    assert secret not in output


def test_help_lists_the_commands(tmp_path: Path) -> None:
    result = run(tmp_path / "home", "--help")
    assert result.returncode == 0
    assert "resume" in result.stdout + result.stderr
