"""The real flow, end to end on the smoke preset: what it leaves, what the cache does, and that `resume` loses nothing."""

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.local.__main__ import environment
from infra.local.seaweedfs import Server
from tests.conftest import BUCKET
from tests.flows.key_search import holds
from tests.flows.launched import SMOKE, TRAININGS, Ended, printed_command, report, run, trained_in_one_process

pytestmark = pytest.mark.long  # a whole run, launched twice: six minutes on two cores

FAILING = Path(__file__).with_name("failing_flow.py")
S3_ROOT = f"s3://{BUCKET}/flow"


@dataclass(frozen=True)
class Launches:
    """A run that failed once, and its resumption."""

    home: Path
    broken: Ended
    resumed: Ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> Launches:
    """The smoke preset with every variant and component, weights and Metaflow's artifacts in one bucket."""
    folder = tmp_path_factory.mktemp("finished")
    config, home = folder / "s3.toml", folder / "home"
    config.write_text(SMOKE.read_text() + f'\n[store]\nroot = "{S3_ROOT}"\n')
    variables = environment(s3_server, BUCKET) | {"FAILED_ONCE": str(folder / "failed")}
    broken = run(home, "--config", "config", str(config), "run", script=FAILING, **variables)
    resumed = run(home, "resume", script=FAILING, **variables)
    assert resumed.returncode == 0, resumed.stdout[-4000:] + resumed.stderr[-2000:]
    return Launches(home, broken, resumed)


def test_run_leaves_bundle_report_and_pictures(finished: Launches) -> None:
    output, found = finished.resumed.stdout, report(finished.home)
    folder, bundle = Path(found["folder"]), Path(found["bundle"])
    assert {"vocab.json", "merges.txt", "manifest.json"} <= {path.name for path in bundle.iterdir()}
    assert len(list(bundle.glob("*.mlpackage"))) == 3
    pictures = {path.name for path in (folder / "pictures").glob("*.png")}
    assert len(pictures) == 6 and "torch_above_bundle_below.png" in pictures
    for expected in (str(bundle), str(folder / "report.json"), "card view", "snapfusion draw"):
        assert expected in output


def test_exported_packages_are_measured_against_torch(finished: Launches) -> None:
    found = report(finished.home)
    for component in ("text_encoder", "unet", "vae_decoder"):
        exact, rounded = (
            found["headline"][f"coreml.{component}.psnr_{name}_db"] for name in ("exact", "rounded")
        )
        assert exact >= 65 and 50 <= rounded <= exact
    manifest = json.loads((Path(found["bundle"]) / "manifest.json").read_text())
    assert manifest["drawing"]["worst_psnr_db"] >= 30
    assert manifest["drawing"]["psnr_db"]["median"] == found["headline"]["coreml.bundle.image_psnr_db"]


def test_a_smoke_run_is_labelled_as_one(finished: Launches) -> None:
    output = finished.resumed.stdout
    assert any("smoke" in label for label in report(finished.home)["labels"])
    assert "no number here means anything" in output


def test_every_stage_is_in_the_report(finished: Launches) -> None:
    names = {stage["stage"] for stage in report(finished.home)["stages"]}
    assert set(TRAININGS) <= names
    assert {"start", "latency_profile", "coreml_export unet", "evaluation student_8_compressed"} <= names


def test_the_report_knows_its_code_and_what_the_cache_did(finished: Launches) -> None:
    found = report(finished.home)
    assert found["code"]["version"] and found["provenance"]["host"]
    rows = {stage["stage"]: stage for stage in found["stages"]}
    assert {row["cached"] for row in rows.values()} <= {True, False}  # not None: it is known
    assert all(len(row["key"]) == len(row["source"]) == 64 and row["code"] for row in rows.values())


def test_a_bundle_is_traced_to_its_run(finished: Launches, tmp_path: Path, s3_server: Server) -> None:
    home, output = finished.home, finished.resumed.stdout
    said = printed_command("trace", output, home, tmp_path, **s3_server.environment())
    assert f"run {Path(report(home)['folder']).name}" in said and "emoji" in said


def test_the_printed_command_draws_a_picture(finished: Launches, tmp_path: Path, s3_server: Server) -> None:
    printed_command("draw", finished.resumed.stdout, finished.home, tmp_path, **s3_server.environment())
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_printed_command_fetches_bundle_report_and_pictures(
    finished: Launches, tmp_path: Path, s3_server: Server
) -> None:
    """On a machine that has nothing but the address of the bucket."""
    said = printed_command(
        "outputs", finished.resumed.stdout, tmp_path / "elsewhere", tmp_path, **s3_server.environment()
    )
    folder, there = Path(report(finished.home)["folder"]), Path(said.strip())
    assert there.is_relative_to(tmp_path)
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert names == {path.relative_to(there) for path in there.rglob("*") if path.is_file()}
    assert all((folder / name).read_bytes() == (there / name).read_bytes() for name in names)


def test_no_key_is_left_anywhere(finished: Launches, s3_server: Server) -> None:
    """Neither in what was printed, nor on disk, nor in the bucket with its records, cards and artifacts."""
    home, broken, resumed = finished.home, finished.broken, finished.resumed
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
    for key in keys:  # the search finds one that is there, packed as Metaflow packs it
        assert holds(gzip.compress(b"a" + base64.b64encode(b"bb" + key.encode())), key)
    assert not [place for place, data in places.items() if any(holds(data, key) for key in keys)]


def test_resume_runs_the_failed_stage_again_and_ends_with_the_same_weights(
    finished: Launches, tmp_path: Path
) -> None:
    """As one process without Metaflow, S3 or a failure."""
    broken, resumed = finished.broken, finished.resumed
    assert broken.returncode != 0
    assert "injected failure" in broken.stdout + broken.stderr
    assert "velocity_finetuning: cache" not in resumed.stdout  # cloned by Metaflow, not run again
    assert "decoder_distillation: cache miss" in resumed.stdout
    found = report(finished.home)["inputs"]
    assert {name: found[name] for name in TRAININGS} == trained_in_one_process(tmp_path)


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
