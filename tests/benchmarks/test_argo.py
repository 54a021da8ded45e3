"""The walkers do what Argo and Step Functions do with the little that Metaflow writes; and, long, the real workflows run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from benchmarks import argo, pods
from benchmarks.argo_walk import Walk, WorkflowFailed, compiled
from benchmarks.pods import Ended, Pods
from benchmarks.state_walk import Machine, look_up, resolve


class Recorded(Pods):
    """Containers that are not run: each prints its command into its output, unless it is to fail."""

    failing: dict[str, int] = {}

    def run(self, name: str, command: Any, environment: Any, secrets: Any, attempt: int) -> Ended:
        """See Pods."""
        folder = self.folder / f"{name}-{attempt}"
        (folder / "mnt/out").mkdir(parents=True)
        (folder / "log").write_text("last words")
        (folder / "mnt/out/said").write_text(" ".join([*command, *sorted(environment.values())]))
        (folder / "mnt/out/splits").write_text("[0, 1]")
        ended = Ended(name, attempt, 1 if attempt < self.failing.get(name, 0) else 0, 0.0, folder)
        self.ended.append(ended)
        return ended


def _container(name: str, *inputs: str, retries: int = 0) -> dict[str, Any]:
    command = [name, *(f"{{{{inputs.parameters.{each}}}}}" for each in inputs)]
    outputs = [
        {"name": "said", "valueFrom": {"path": "/mnt/out/said"}},
        {"name": "splits", "valueFrom": {"path": "/mnt/out/splits"}},
    ]
    return {
        "name": name,
        "inputs": {"parameters": [{"name": each} for each in inputs]},
        "outputs": {"parameters": outputs},
        "retryStrategy": {"limit": retries},
        "container": {"command": command, "env": [{"name": "RUN", "value": "{{workflow.name}}"}]},
    }


def _task(name: str, template: str, depends: str = "", **arguments: str) -> dict[str, Any]:
    given = [{"name": each, "value": value} for each, value in arguments.items()]
    return {"name": name, "template": template, "depends": depends, "arguments": {"parameters": given}}


def _workflow(*templates: Any, tasks: list[Any]) -> dict[str, Any]:
    dag = {"name": "Flow", "dag": {"tasks": tasks}}
    spec = {"entrypoint": "Flow", "arguments": {"parameters": []}, "templates": [dag, *templates]}
    return {"metadata": {"name": "flow"}, "spec": spec}


def _foreach() -> dict[str, Any]:
    inner = {
        "name": "each",
        "inputs": {"parameters": [{"name": "index"}]},
        "dag": {"tasks": [_task("work", "work", index="{{inputs.parameters.index}}")]},
    }
    many = _task("many", "each", "first.Succeeded", index="{{item}}")
    many["withParam"] = "{{tasks.first.outputs.parameters.splits}}"
    last = _task(
        "last", "last", "many.Succeeded && first.Succeeded", text="{{tasks.first.outputs.parameters.said}}"
    )
    containers = [_container("first"), _container("work", "index", retries=1), _container("last", "text")]
    return _workflow(inner, *containers, tasks=[last, many, _task("first", "first")])


def test_a_foreach_is_fanned_out_and_joined_with_what_went_before(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, {})
    walk = Walk(_foreach(), recorded)
    walk.run()
    names = [item.name for item in recorded.ended]
    assert names[0] == "first" and sorted(names[1:3]) == ["many-0.work", "many-1.work"] and names[3] == "last"
    assert recorded.ended[3].file("/mnt/out/said") == f"last first {walk.name} {walk.name}"


def test_a_failed_container_is_tried_as_often_as_the_template_says(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, {})
    recorded.failing = {"many-0.work": 1}
    Walk(_foreach(), recorded).run()
    assert [item.attempt for item in recorded.ended if item.name == "many-0.work"] == [0, 1]
    recorded = Recorded(tmp_path / "again", {})
    recorded.failing = {"many-0.work": 2}
    with pytest.raises(WorkflowFailed, match=r"many-0.work failed in 2 attempts:\nlast words"):
        Walk(_foreach(), recorded).run()
    assert "last" not in [item.name for item in recorded.ended]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (_task("x", "first", "y.Failed"), "depends on"),
        (_task("x", "first", "y.Succeeded"), "nothing can run"),
        (_task("x", "first") | {"when": "true"}, "when"),
        (_task("x", "last"), "is not given"),
        (_task("x", "last", text="{{tasks.y.outputs.parameters.z}}"), "has no value"),
    ],
)
def test_what_the_walk_does_not_know_it_refuses(tmp_path: Path, task: Any, said: str) -> None:
    template = _workflow(_container("first"), _container("last", "text"), tasks=[task])
    with pytest.raises(WorkflowFailed, match=said):
        Walk(template, Recorded(tmp_path, {})).run()


def test_json_is_found_behind_what_metaflow_says_first() -> None:
    assert (
        compiled('Deploying *Flow*...\n\n{"a": {"b": 1}}') == {"a": {"b": 1}} == compiled('{"a": {"b": 1}}')
    )


def _state(name: str, **more: Any) -> dict[str, Any]:
    environment = [{"Name": "PARENT", "Value.$": "$.JobId"}] if name != "start" else []
    return {
        "Type": "Task", "Resource": "arn:aws:states:::batch:submitJob.sync",
        "OutputPath": "$.['JobId', 'Parameters', 'Index']",
        "Parameters": {
            "JobName": name, "Parameters": {"run.$": "$$.Execution.Name"}, "RetryStrategy": {"Attempts": 2},
            "ContainerOverrides": {"Command": [name], "Environment": environment},
        },
        **more,
    }  # fmt: skip


def test_a_state_machine_is_walked_with_its_map_and_its_branches(tmp_path: Path) -> None:
    class Table:
        def get_item(self, **given: Any) -> Any:
            self.key = given["Key"]["pathspec"]["S"]
            return {"Item": {"for_each_cardinality": {"NS": ["0", "1"]}}}

    iterator = {"StartAt": "each", "States": {"each": _state("each", End=True)}}
    branches = [{"StartAt": name, "States": {name: _state(name, End=True)}} for name in ("left", "right")]
    states = {
        "start": _state("start", Next="#each"),
        "#each": {
            "Type": "Task", "Resource": "arn:aws:states:::dynamodb:getItem", "ResultPath": "$.Result", "Next": "*each",
            "Parameters": {"TableName": "t", "Key": {"pathspec": {"S.$": "$.JobId"}}},
        },
        "*each": {
            "Type": "Map", "ItemsPath": "$.Result.Item.for_each_cardinality.NS", "Iterator": iterator, "Next": "both",
            "Parameters": {"JobId.$": "$.JobId", "Index.$": "$$.Map.Item.Value"}, "OutputPath": "$.[0]",
        },
        "both": {"Type": "Parallel", "Branches": branches, "Next": "end"},
        "end": _state("end", End=True),
    }  # fmt: skip
    states["end"]["Parameters"]["ContainerOverrides"]["Environment"] = [
        {"Name": "LEFT", "Value.$": "$.[0].JobId"}
    ]
    recorded, table = Recorded(tmp_path, {}), Table()
    recorded.failing = {"each-1": 1}
    Machine({"StartAt": "start", "States": states}, recorded, {"KEY": "role"}, table).run()
    names = [item.name for item in recorded.ended]
    assert names[0] == "start" and sorted(names[1:4]) == ["each-0", "each-1", "each-1"] and names[-1] == "end"
    assert sorted(names[4:6]) == ["left", "right"]
    said = {item.name: item.file("/mnt/out/said") for item in recorded.ended}
    assert table.key in said["each-0"] and "role" in said["each-0"]


def test_paths_of_the_state_language() -> None:
    data = {"JobId": "1", "Parameters": {"metaflow.run_id": "r", "a": 2}}
    assert look_up("$.Parameters.['metaflow.run_id']", data, {}) == "r"
    assert look_up("$.['JobId', 'Index']", data, {}) == {"JobId": "1"}
    assert look_up("$", data, {}) is data and look_up("$.[0].x", [{"x": 3}], {}) == 3
    assert resolve({"a.$": "$.JobId", "b": [{"c.$": "$$.x"}]}, data, {"x": 4}) == {"a": "1", "b": [{"c": 4}]}
    with pytest.raises(WorkflowFailed, match="has no value"):
        look_up("$.Nothing", data, {})


needs_mounts = pytest.mark.skipif(not pods.can_run(), reason="this user may not make mount namespaces")


@needs_mounts
def test_a_container_sees_nothing_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    ran = Pods(tmp_path / "pods", {"keys": {"KEY": "k"}})
    hidden = " ".join(str(path / "pyproject.toml") for path in pods._checkouts())
    script = f"echo $KEY $GIVEN $HOME $PWD; ls -A $PWD /tmp /mnt/out; ls {hidden}; echo out > /mnt/out/x; "
    script += "python -c 'import steps'"
    ended = ran.run("pod", ["bash", "-c", script], {"GIVEN": "g"}, ["keys"], 0)
    assert ended.log.splitlines()[0] == "k g /root /root/work" and ended.file("/mnt/out/x") == "out\n"
    assert "No module named 'steps'" in ended.log and "No such file" in ended.log and "here" not in ended.log
    with pytest.raises(KeyError, match="other"):
        ran.run("pod", ["true"], {}, ["other"], 1)


@needs_mounts
def test_a_container_is_killed_when_it_says_so(tmp_path: Path) -> None:
    ran = Pods(tmp_path, {}, {"pod": "now"})
    assert ran.run("pod", ["bash", "-c", "echo now; sleep 60"], {}, [], 0).status == -9
    assert ran.run("pod", ["bash", "-c", "echo now"], {}, [], 1).status == 0


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[argo.Deployment]:
    with argo.deployment(tmp_path_factory.mktemp("deployed")) as made:
        yield made


@pytest.fixture(scope="module")
def workflow(deployed: argo.Deployment) -> Any:
    return deployed.template("argo-workflows")


@pytest.mark.long
def test_every_pod_is_what_kubernetes_takes(workflow: Any) -> None:
    templates = {item["name"]: item for item in workflow["spec"]["templates"] if "container" in item}
    for item in templates.values():
        kubernetes_validate.validate(_pod(item), "1.31", strict=True)
    teacher, other = templates["teacher-16"], templates["student-8"]
    assert teacher["container"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert teacher["container"]["resources"]["requests"]["memory"] == "8192M"
    assert teacher["tolerations"][0]["key"] == "spot" and teacher["nodeSelector"]
    assert not other["tolerations"] and other["retryStrategy"]["limit"] == 2
    assert other["serviceAccountName"] == "snapfusion" and other["activeDeadlineSeconds"] == 3600
    variables = {item["name"]: item["value"] for item in other["container"]["env"]}
    assert variables["AWS_ENDPOINT_URL_S3"] == variables["METAFLOW_S3_ENDPOINT_URL"]
    assert "AWS_SECRET_ACCESS_KEY" not in variables
    broken = _pod(other)
    broken["spec"]["containers"][0]["env"][0]["valeu"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def _pod(template: Any) -> Any:
    """The pod that Argo's controller makes of a container template."""
    shared = ("volumes", "tolerations", "nodeSelector", "serviceAccountName")
    spec = {"containers": [template["container"]], "restartPolicy": "Never"}
    spec |= {name: template.get(name) for name in shared}
    metadata = {"name": "x", **template.get("metadata", {})}
    return _said({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def _said(value: Any) -> Any:
    """Without what is null, which Kubernetes drops."""
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items() if item is not None}
    return [_said(item) for item in value] if isinstance(value, list) else value


@pytest.mark.long
@needs_mounts
def test_the_compiled_workflows_run_container_by_container(deployed: argo.Deployment, workflow: Any) -> None:
    """Argo's walk loses a container; the state machine finds everything in the cache. A second walk: benchmarks.argo."""
    first = argo.walk_argo(deployed, workflow, "first", argo.KILLED)
    attempts = [(item.attempt, item.status) for item in first.ended if item.name == "robust-training"]
    assert attempts == [(0, -9), (1, 0)]
    assert set(argo.outcomes(first).values()) == {"miss"}
    client = deployed.server.client()
    reports = client.list_objects_v2(Bucket=argo.BUCKET, Prefix="store/documents/reports/argo-")
    assert reports["KeyCount"] == 1
    with argo.amazon() as settings:
        jobs = argo.walk_step_functions(deployed, settings)
    assert [item.status for item in jobs.ended if item.name == "student_8"] == [-9, 0]
    assert set(argo.outcomes(jobs).values()) == {"hit"}
