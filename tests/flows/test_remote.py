"""`[resources.<step>]` becomes Metaflow's decorators on other machines only, and what must fail there is refused here."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from metaflow import metaflow_config

from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from flows import remote, remote_settings
from flows.remote import decorators, engine_of, notices, problems_of, resources_of
from tests.flows.launched import FLOW, ROOT, SMOKE

ON_S3 = {"root": "s3://bucket/prefix"}


def _config(**sections: Any) -> SnapFusionConfig:
    return parse_config({"store": ON_S3, **sections})


@pytest.mark.parametrize(
    ("line", "environment", "expected"),
    [
        ("run", {}, (None, False)),
        ("run --with retry", {}, (None, False)),
        ("run --tag kubernetes", {}, (None, False)),
        ("show", {}, (None, False)),
        ("", {}, (None, False)),
        ("run --with kubernetes", {}, ("kubernetes", True)),
        ("run --with=batch:cpu=4", {}, ("batch", True)),
        ("argo-workflows create --only-json", {}, ("kubernetes", True)),
        ("argo-workflows trigger", {}, (None, False)),
        ("step-functions create", {}, ("batch", True)),
        ("kubernetes step start hash url", {}, ("kubernetes", False)),
        ("step start --run-id 1", {"METAFLOW_KUBERNETES_WORKLOAD": "1"}, ("kubernetes", False)),
        ("step start --run-id 1", {"AWS_BATCH_JOB_ID": "1"}, ("batch", False)),
    ],
)
def test_the_command_line_tells_where_steps_run(
    line: str, environment: Mapping[str, str], expected: tuple[str | None, bool]
) -> None:
    assert engine_of(line.split(), environment) == expected


def test_a_step_has_its_own_table_over_the_default() -> None:
    config = _config(
        resources={"default": {"image": "i", "cpu": 2, "retries": 3}, "teacher_16": {"cpu": 8, "gpu": 1}}
    )
    mine, other = resources_of(config, "teacher_16"), resources_of(config, "student_8")
    assert (mine.image, mine.cpu, mine.gpu, mine.retries) == ("i", 8, 1, 3)
    assert (other.cpu, other.gpu) == (2, None)


def test_a_table_becomes_metaflows_decorators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaflow_config, "S3_ENDPOINT_URL", "http://s3:8333")
    table = {
        "image": "i", "cpu": 2.5, "memory_mb": 9000, "gpu": 1, "disk_mb": 50_000, "shared_memory_mb": 1024,
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
        "node_selector": {"pool": "gpu"}, "secrets": ["keys"], "service_account": "me", "queue": "q", "retries": 2,
        "timeout_minutes": 90,
    }  # fmt: skip
    found = decorators(resources_of(_config(resources={"default": table}), "start"), "kubernetes")
    assert found["kubernetes"] == {
        "image": "i", "cpu": 2.5, "memory": 9000, "gpu": 1, "disk": 50_000, "shared_memory": 1024,
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
        "node_selector": {"pool": "gpu"}, "secrets": ["keys"], "service_account": "me",
    }  # fmt: skip
    assert found["retry"] == {"times": 2, "minutes_between_retries": 2}
    assert found["timeout"] == {"minutes": 90}
    assert found["environment"]["vars"]["AWS_ENDPOINT_URL_S3"] == "http://s3:8333"
    batch = decorators(resources_of(_config(resources={"default": table}), "start"), "batch")["batch"]
    assert batch == {"image": "i", "cpu": 2.5, "memory": 9000, "gpu": 1, "shared_memory": 1024, "queue": "q"}


def test_what_a_table_does_not_say_is_left_to_metaflow() -> None:
    found = decorators(resources_of(_config(), "start"), "kubernetes")
    assert found["kubernetes"] == {} and not {"retry", "timeout"} & set(found)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"gpuu": 1}, "did you mean 'resources.teacher_16.gpu'"),
        ({"retries": 9}, "resources.teacher_16.retries"),
        ({"tolerations": [{"value": "x"}]}, "operator 'Equal' needs key"),
    ],
)
def test_a_wrong_table_is_refused_by_its_key(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        parse_config({"resources": {"teacher_16": table}})


def test_a_remote_run_without_image_or_with_a_store_of_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metaflow_config, "KUBERNETES_CONTAINER_IMAGE", None)
    monkeypatch.setattr(sys, "argv", ["flow"])
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    local = parse_config({})
    found = problems_of(local, {"start": resources_of(local, "start")}, "kubernetes")
    assert len(found) == 2 and "store.root" in found[0] and "no image" in found[1]
    half = _config(resources={"start": {"image": "i"}})
    tables = {name: resources_of(half, name) for name in ("start", "end")}
    assert "no image is named for end:" in problems_of(half, tables, "kubernetes")[0]
    assert problems_of(half, {"start": tables["start"]}, "kubernetes") == []
    monkeypatch.setattr(metaflow_config, "S3_ENDPOINT_URL", None)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://here:1")
    assert "METAFLOW_S3_ENDPOINT_URL" in problems_of(half, {"start": tables["start"]}, "kubernetes")[0]


def test_a_measured_table_on_mixed_nodes_is_told_of() -> None:
    said = notices(_config(base={"path": "micro"}))
    assert "mixed nodes" in said[0] and "assets/evaluators/openclip_signal" in said[1]
    away = {"signal_clip": "s3://b/signal", "measure_clip": "/opt/measure"}
    assert (
        notices(_config(base={"path": "micro"}, latency_profile={"backend": "macs"}, evaluation=away)) == []
    )


def test_a_missing_setting_of_step_functions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCH_JOB_QUEUE", "ECS_S3_ACCESS_IAM_ROLE", "SFN_IAM_ROLE", "SFN_DYNAMO_DB_TABLE"):
        monkeypatch.setattr(metaflow_config, name, None)
    said = remote_settings.check_settings("batch", ["step-functions", "create"], [None])
    assert [line.split()[0] for line in said] == [
        "METAFLOW_BATCH_JOB_QUEUE", "METAFLOW_ECS_S3_ACCESS_IAM_ROLE", "METAFLOW_SFN_IAM_ROLE",
        "METAFLOW_SFN_DYNAMO_DB_TABLE",
    ]  # fmt: skip
    assert len(remote_settings.check_settings("batch", ["run", "--with", "batch"], ["own queue"])) == 1


def test_aws_without_a_region_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in ("BATCH_JOB_QUEUE", "ECS_S3_ACCESS_IAM_ROLE"):
        monkeypatch.setattr(metaflow_config, name, "x")
    assert "region" in remote_settings.check_settings("batch", ["run", "--with", "batch"], [None])[0]


def test_a_kubernetes_run_without_a_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert (
        "KUBECONFIG" in remote_settings.check_settings("kubernetes", ["run", "--with", "kubernetes"], [])[0]
    )
    assert remote_settings.check_settings("kubernetes", ["argo-workflows", "create", "--only-json"], []) == []


def _flow(home: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = home / "config.toml"
    file.write_text(SMOKE.read_text() + config)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("METAFLOW", "AWS"))}
    return subprocess.run(
        [sys.executable, str(FLOW), "--config", "config", str(file), *arguments],
        env=clean | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_refusals_come_without_traceback(tmp_path: Path) -> None:
    """Through Metaflow: an unknown step even where nothing is remote, the rest before anything is submitted."""
    done = _flow(tmp_path, "[resources.techer_16]\ngpu = 1\n", "show")
    assert done.returncode != 0 and "did you mean 'resources.teacher_16'?" in done.stdout + done.stderr
    refused = _flow(
        tmp_path, "", "--datastore", "s3", "--datastore-root", "s3://b/m", "run", "--with", "kubernetes"
    )
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0 and "nothing was submitted" in said and "store.root" in said
    assert "Traceback" not in said + done.stdout + done.stderr


def test_what_the_command_line_says_comes_before_the_table() -> None:
    class Step:
        OVERRIDE = 3
        added: dict[str, Any] = {}

        def get_decorator_specs(self, name: str) -> list[Any]:
            defaults = remote._defaults("kubernetes")
            return [("kubernetes", "", [], {**defaults, "cpu": "7"})] if name == "kubernetes" else []

        def add_decorator(self, name: str, *, deco_kwargs: dict[str, Any], duplicates: int) -> None:
            self.added = deco_kwargs

    step = Step()
    remote._attach(step, "kubernetes", {"cpu": 2, "gpu": 1})
    assert (step.added["cpu"], step.added["gpu"]) == ("7", 1)
