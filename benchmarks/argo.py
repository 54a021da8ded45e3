"""Executes the compiled workflows of the smoke preset without a cluster, and publishes that they ran.

    python -m benchmarks.argo --json benchmarks/results/argo.json

1. `argo-workflows create --only-json`, walked container by container (`benchmarks.argo_walk`) on a local S3 server; one
   container is killed while it trains and must be retried.
2. The same workflow again: every stage must come from the cache.
3. `step-functions create --only-json` against moto's AWS, walked job by job (`benchmarks.state_walk`) on the same store;
   one job is killed.

Containers are processes with private mounts (`benchmarks.pods`); what Kubernetes, Argo and AWS themselves do is not shown.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from benchmarks.argo_walk import Walk, compiled
from benchmarks.pods import Pods
from benchmarks.published import ROOT, Metric, publish, result
from benchmarks.state_walk import Machine
from infra.local.__main__ import environment
from infra.local.seaweedfs import Server, serve

BUCKET = "snapfusion-remote"
SECRET = "snapfusion-s3"  # the Kubernetes secret that holds the keys
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_EVALUATORS = ("openclip_signal", "openclip_measure")
_STAGE = re.compile(r"^(?P<stage>[a-z_0-9]+(?: [a-z_0-9]+)?): cache (?P<how>hit|miss)", re.MULTILINE)
KILLED = {"robust-training": "iteration=0 held_out"}
KILLED_JOB = {"student_8": "Task is starting."}


@dataclass(frozen=True)
class Deployment:
    """Everything that a deployment needs: the server, a folder of its own, and the configuration."""

    server: Server
    folder: Path
    config: Path

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Call the flow as whoever deploys it does."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("METAFLOW", "AWS"))}
        return subprocess.run(
            [sys.executable, str(ROOT / "flows/snapfusion_flow.py"), "--config", "config", str(self.config), *arguments],
            env=clean | environment(self.server, BUCKET)
            | {"SNAPFUSION_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT), "METAFLOW_USER": "tester"}
            | variables,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def template(self, *arguments: str, **variables: str) -> Any:
        """What `create --only-json` prints. Raises RuntimeError with what the command says when it fails."""
        done = self.command(*arguments, "create", "--only-json", **variables)
        if done.returncode != 0:
            raise RuntimeError(
                f"{' '.join(arguments)} create failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
            )
        return compiled(done.stdout)

    def pods(self, name: str, kill: Mapping[str, str]) -> Pods:
        """Containers that get the keys of the server as a Kubernetes secret."""
        keys = self.server.environment()
        return Pods(self.folder / name, {SECRET: {key: keys[key] for key in _KEYS}}, kill)


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A server with the evaluators in its bucket, and the smoke preset with as little as every kind of step needs."""
    with serve(folder / "s3", stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        client = server.client()
        for file in (ROOT / "assets/evaluators").rglob("*"):
            if file.is_file():
                client.upload_file(str(file), BUCKET, file.relative_to(ROOT).as_posix())
        config = folder / "remote.toml"
        config.write_text(_config())
        yield Deployment(server, folder, config)


def _config() -> str:
    text = (ROOT / "configs/smoke.toml").read_text()
    variants = re.compile(r"^variants = \[.*?\]$", re.MULTILINE)
    if len(variants.findall(text)) != 1:
        raise RuntimeError("expected one line with evaluation.variants in the smoke preset")
    signal, measure = (f"s3://{BUCKET}/assets/evaluators/{name}" for name in _EVALUATORS)
    few = f'variants = ["base_50", "student_8_small_decoder"]\nsignal_clip = "{signal}"\nmeasure_clip = "{measure}"'
    return f"""{variants.sub(few, text)}
[store]
root = "s3://{BUCKET}/store"

[resources.default]
image = "registry.example/snapfusion:1"
cpu = 2
memory_mb = 8192
disk_mb = 20480
retries = 2
minutes_between_retries = 0
timeout_minutes = 60
secrets = ["{SECRET}"]
service_account = "snapfusion"

[resources.teacher_16]
gpu = 1
shared_memory_mb = 2048
node_selector = {{ "node.kubernetes.io/instance-type" = "g6.xlarge" }}

[[resources.teacher_16.tolerations]]
key = "spot"
operator = "Exists"
effect = "NoSchedule"
"""


@contextmanager
def amazon() -> Iterator[dict[str, str]]:
    """moto's AWS with a queue, roles and a table; the settings with which Metaflow deploys there."""
    from moto.server import ThreadedMotoServer

    service = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    try:
        host, port = service.get_host_and_port()
        url = f"http://{host}:{port}"
        role = _account(url)
        yield {
            "AWS_ENDPOINT_URL": url,
            "METAFLOW_SFN_IAM_ROLE": role,
            "METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE": role,
            "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": role,
            "METAFLOW_BATCH_JOB_QUEUE": "snapfusion",
            "METAFLOW_SFN_DYNAMO_DB_TABLE": "snapfusion",
        }
    finally:
        service.stop()


def client_of(url: str, name: str) -> Any:
    """A client of one of moto's services."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client(name, endpoint_url=url, region_name="us-east-1", **keys)  # type: ignore[call-overload]


def _account(url: str) -> str:
    """Make what a deployment of Metaflow on AWS has; returns the role."""
    iam, ec2, batch = (client_of(url, name) for name in ("iam", "ec2", "batch"))
    role = str(iam.create_role(RoleName="snapfusion", AssumeRolePolicyDocument="{}")["Role"]["Arn"])
    profile = iam.create_instance_profile(InstanceProfileName="snapfusion")["InstanceProfile"]["Arn"]
    resources = {
        "type": "EC2", "minvCpus": 0, "maxvCpus": 4, "instanceTypes": ["optimal"], "instanceRole": profile,
        "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
        "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
    }  # fmt: skip
    machines = batch.create_compute_environment(
        computeEnvironmentName="snapfusion", type="MANAGED", state="ENABLED", serviceRole=role, computeResources=resources
    )["computeEnvironmentArn"]  # fmt: skip
    order = [{"order": 1, "computeEnvironment": machines}]
    batch.create_job_queue(
        jobQueueName="snapfusion", state="ENABLED", priority=1, computeEnvironmentOrder=order
    )
    client_of(url, "dynamodb").create_table(
        TableName="snapfusion",
        KeySchema=[{"AttributeName": "pathspec", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pathspec", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return role


def walk_argo(made: Deployment, template: Any, name: str, kill: Mapping[str, str]) -> Pods:
    """Execute the workflow; returns its containers."""
    pods = made.pods(name, kill)
    Walk(template, pods).run()
    return pods


def walk_step_functions(made: Deployment, settings: Mapping[str, str]) -> Pods:
    """Compile the state machine and execute it; returns its jobs."""
    template = made.template("step-functions", **settings)
    pods, url = made.pods("jobs", KILLED_JOB), settings["AWS_ENDPOINT_URL"]
    keys = made.server.environment()
    # A job gets its keys from its role; moto accepts any.
    image = {key: keys[key] for key in _KEYS} | {"AWS_ENDPOINT_URL_DYNAMODB": url}
    Machine(template, pods, image, client_of(url, "dynamodb")).run()
    return pods


def outcomes(pods: Pods) -> dict[str, str]:
    """Hit or miss, by stage."""
    return {found["stage"]: found["how"] for ended in pods.ended for found in _STAGE.finditer(ended.log)}


def main() -> int:
    """Walk all three and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Metric] = []

    def told(*found: Metric) -> None:  # after each walk: one that is broken off leaves what has come through
        rows.extend(found)
        publish(result(rows, module="benchmarks.argo", seed=0), arguments.json)

    with tempfile.TemporaryDirectory(prefix="argo-") as folder, deployment(Path(folder)) as made:
        template = made.template("argo-workflows")
        started = time.monotonic()
        first = walk_argo(made, template, "first", KILLED)
        seconds = time.monotonic() - started
        told(
            Metric(
                "argo.executed",
                1,
                "",
                len(first.ended),
                1,
                1,
                f"{_count(first)}; processes with private mounts",
            ),
            Metric("argo.seconds", seconds, "s", 1, seconds, seconds, "smoke preset, two containers at once"),
        )
        found = list(outcomes(walk_argo(made, template, "second", {})).values())
        hits = found.count("hit") / len(found)
        note = "share of stages from the cache"
        told(Metric("argo.second_walk_hits", hits, "", len(found), hits, hits, note))
        with amazon() as settings:
            jobs = walk_step_functions(made, settings)
        told(Metric("step_functions.executed", 1, "", len(jobs.ended), 1, 1, f"{_count(jobs)}; moto's AWS"))
    return 0


def _count(pods: Pods) -> str:
    """All but the killed have come through: a container that fails ends the program."""
    killed = [item.name for item in pods.ended if item.status != 0]
    return f"{len(pods.ended)} containers, killed and retried: {', '.join(killed)}"


if __name__ == "__main__":
    sys.exit(main())
