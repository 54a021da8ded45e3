"""The real flow, end to end on the smoke preset: what it leaves, what the cache does, and that `resume` loses nothing."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.local.__main__ import environment
from infra.local.seaweedfs import Server
from tests.conftest import BUCKET
from tests.flows.key_search import holds

ROOT = Path(__file__).resolve().parents[2]
FLOW = ROOT / "flows" / "snapfusion_flow.py"
FAILING = Path(__file__).with_name("failing_flow.py")
SMOKE = ROOT / "configs" / "smoke.toml"
TRAININGS = (
    "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8",
    "decoder_distillation",
)  # fmt: skip


S3_ROOT = f"s3://{BUCKET}/flow"


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


Interrupted = tuple[Path, subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> Iterator[Future[Interrupted]]:
    """A run that fails once and is resumed, its weights and Metaflow's artifacts in one bucket; beside the other run."""
    folder = tmp_path_factory.mktemp("interrupted")
    short = '[coreml_export]\ncomponents = ["text_encoder"]\n'
    variants = 'variants = ["base_50", "base_8", "student_8", "student_8_small_decoder"]'
    config = folder / "short.toml"
    config.write_text(
        SMOKE.read_text().replace(variants, 'variants = ["base_8"]')
        + short
        + f'\n[store]\nroot = "{S3_ROOT}"\n'
    )
    variables = environment(s3_server, BUCKET) | {"FAILED_ONCE": str(folder / "failed")}

    def both() -> Interrupted:
        home = folder / "home"
        broken = run(home, "--config", "config", str(config), "run", script=FAILING, **variables)
        return home, broken, run(home, "resume", script=FAILING, **variables)

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(both)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, interrupted: Future[Interrupted]) -> tuple[Path, str]:
    """A run with everything in folders; the other run of this file has it on S3, and both must come out equal."""
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
    for expected in (str(bundle), str(folder / "report.json"), "card view", "python -m flows.commands.draw"):
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
def test_the_report_knows_its_code_and_what_the_cache_did(
    finished: tuple[Path, str], interrupted: Future[Interrupted]
) -> None:
    homes = finished[0], interrupted.result()[0]
    for found in map(report, homes):
        assert found["code"]["version"] and found["provenance"]["host"]
        rows = {stage["stage"]: stage for stage in found["stages"]}
        assert {row["cached"] for row in rows.values()} <= {True, False}  # not None: it is known
        assert all(len(row["key"]) == len(row["source"]) == 64 and row["code"] for row in rows.values())


@pytest.mark.slow
def test_a_bundle_is_traced_to_its_run(finished: tuple[Path, str]) -> None:
    home, output = finished
    printed = re.search(r"trace +python (-m flows\.trace .+)", output)
    assert printed is not None
    result = subprocess.run(
        [sys.executable, *shlex.split(printed[1])],
        env=os.environ | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"run {Path(report(home)['folder']).name}" in result.stdout and "emoji" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folders", "s3"])
def test_the_printed_command_draws_a_picture(
    finished: tuple[Path, str], interrupted: Future[Interrupted], tmp_path: Path, s3_server: Server, kind: str
) -> None:
    home, output = (
        finished if kind == "folders" else (interrupted.result()[0], interrupted.result()[2].stdout)
    )
    printed = re.search(r"draw +python (-m flows\.draw .+)", output)
    assert printed is not None
    result = subprocess.run(
        [sys.executable, *shlex.split(printed[1])],
        env=os.environ | s3_server.environment() | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_no_key_is_left_anywhere(interrupted: Future[Interrupted], s3_server: Server) -> None:
    """Neither in what was printed, nor on disk, nor in the bucket with its records, cards and artifacts."""
    home, broken, resumed = interrupted.result()
    places = {
        str(path): path.read_bytes() for path in home.rglob("*") if path.is_file() and not path.is_symlink()
    }
    places["printed"] = "".join((broken.stdout, broken.stderr, resumed.stdout, resumed.stderr)).encode()
    client = s3_server.client()
    for prefix in ("flow/documents/", "metaflow/"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for item in page["Contents"]:
                places[item["Key"]] = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
    assert any("documents/reports" in place for place in places)
    assert any("mf.cards" in place for place in places)
    # An access key is no secret by itself, but nothing has a reason to write it: it comes with signed requests.
    keys = (s3_server.admin.secret_key, s3_server.admin.access_key)
    assert not [place for place, data in places.items() if any(holds(data, key) for key in keys)]


@pytest.mark.slow
def test_resume_runs_the_failed_stage_again_and_ends_with_the_same_weights(
    finished: tuple[Path, str], interrupted: Future[Interrupted]
) -> None:
    home, broken, resumed = interrupted.result()
    assert broken.returncode != 0
    assert "injected failure" in broken.stdout + broken.stderr
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
