"""Executes a compiled Argo workflow on this machine, container by container; see `benchmarks.pods`.

It reads what `argo-workflows create --only-json` prints and does what Argo's controller does with it: tasks of a DAG when
those that they depend on have succeeded, one instance per item of `withParam`, parameters in and out, retries by a
template's `retryStrategy` (without the pause). What it does not know it refuses, so that nothing is passed over. The hook
of failed workflows (`onExit`) is not run.
"""

import base64
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

from benchmarks.pods import Pods

_TAG = re.compile(r"\{\{(=?)\s*([^{}]+?)\s*\}\}")
_BASE64 = re.compile(r"toBase64\((.+)\)")
_FIELDS = {
    "metadata.namespace": "default",
    "metadata.uid": "00000000-0000-0000-0000-000000000000",
    "spec.serviceAccountName": "default",
    "status.hostIP": "127.0.0.1",
}
_THREADS = 64  # most of them wait: the containers at work are counted by `Pods`
_TASK = {"name", "template", "arguments", "depends", "withParam"}
Values = dict[str, str]


class WorkflowFailed(RuntimeError):
    """A container failed in all its attempts, or the workflow says something that this program does not do."""


def compiled(printed: str) -> Any:
    """The workflow template in what the command printed: Metaflow says a few words before the JSON."""
    return json.loads(printed[printed.index("\n{") if not printed.startswith("{") else 0 :])


class Walk:
    """One execution of a workflow template."""

    def __init__(self, template: Any, pods: Pods) -> None:
        self._spec = template["spec"]
        self._templates = {item["name"]: item for item in self._spec["templates"]}
        self._pods, self._pool = pods, ThreadPoolExecutor(_THREADS)
        self.name = f"{template['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        self._globals = {
            "workflow.name": self.name,
            "workflow.creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for item in self._spec["arguments"]["parameters"]:
            self._globals[f"workflow.parameters.{item['name']}"] = item["value"]

    def run(self) -> None:
        """From the entry point to the end. Raises WorkflowFailed with the failed container's last words."""
        with self._pool:
            self._dag(self._templates[self._spec["entrypoint"]], {}, "")

    def _dag(self, template: Any, inputs: Values, label: str) -> Values:
        """Run a DAG's tasks in the order of their dependencies; returns its output parameters."""
        waiting = {task["name"]: task for task in template["dag"]["tasks"]}
        done: set[str] = set()
        values = self._globals | {f"inputs.parameters.{name}": value for name, value in inputs.items()}
        running: dict[Future[Values], tuple[str, bool]] = {}
        left: dict[str, int] = {}
        while waiting or running:
            for name in [name for name, task in waiting.items() if _needs(task) <= done]:
                task = waiting.pop(name)
                instances = list(_instances(task, values))
                left[name] = len(instances)
                for number, arguments in enumerate(instances):
                    each = (f"{label}." if label else "") + (
                        f"{name}-{number}" if "withParam" in task else name
                    )
                    future = self._pool.submit(self._template, task["template"], arguments, each)
                    running[future] = (name, "withParam" in task)
            if not running:
                raise WorkflowFailed(f"{label or self.name}: nothing can run of {sorted(waiting)}")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, many = running.pop(future)
                left[name] -= 1
                if not left[name]:
                    done.add(name)
                for key, value in future.result().items():
                    if not many:  # Argo aggregates those of many; nothing of Metaflow's reads that
                        values[f"tasks.{name}.outputs.parameters.{key}"] = value
        outputs = template.get("outputs", {}).get("parameters", ())
        return {item["name"]: _fill(item["valueFrom"]["parameter"], values) for item in outputs}

    def _template(self, name: str, arguments: Values, label: str) -> Values:
        """Run one instance of a template; returns its output parameters."""
        template = self._templates[name]
        if not {"dag", "container"} & set(template):
            raise WorkflowFailed(f"template {name} is neither a DAG nor a container")
        run = self._dag if "dag" in template else self._container
        return run(template, _given(template, arguments), label)

    def _container(self, template: Any, inputs: Values, label: str) -> Values:
        """Attempts until one succeeds; returns the output parameters."""
        container, limit = template["container"], int(template.get("retryStrategy", {}).get("limit", 0))
        secrets = [item["secretRef"]["name"] for item in container.get("envFrom") or ()]
        for attempt in range(limit + 1):
            values = self._globals | {f"inputs.parameters.{name}": value for name, value in inputs.items()}
            values |= {"retries": str(attempt), "pod": f"{self.name}-{label}-{attempt}"}
            command = [_fill(part, values) for part in container["command"]]
            environment = {item["name"]: _variable(item, values) for item in container["env"]}
            ended = self._pods.run(label, command, environment, secrets, attempt)
            if ended.status == 0:
                outputs = template.get("outputs", {}).get("parameters", ())
                return {item["name"]: ended.file(item["valueFrom"]["path"]) for item in outputs}
        raise WorkflowFailed(f"{label} failed in {limit + 1} attempts:\n{ended.log[-3000:]}")


def _needs(task: Mapping[str, Any]) -> set[str]:
    """The tasks that must have succeeded before. Raises WorkflowFailed for any other condition."""
    if not set(task) <= _TASK:
        raise WorkflowFailed(f"task {task['name']} has {sorted(set(task) - _TASK)}")
    terms = [term.strip() for term in task.get("depends", "").split("&&") if term.strip()]
    if not all(re.fullmatch(r"[\w-]+\.Succeeded", term) for term in terms):
        raise WorkflowFailed(f"task {task['name']} depends on {task['depends']!r}")
    return {term.removesuffix(".Succeeded") for term in terms}


def _instances(task: Mapping[str, Any], values: Values) -> Iterator[Values]:
    """The arguments of each instance of a task: of the one, or of one per item."""
    items = json.loads(_fill(task["withParam"], values)) if "withParam" in task else [None]
    for item in items:
        own = values if item is None else values | {"item": str(item)}
        yield {each["name"]: _fill(each["value"], own) for each in task["arguments"]["parameters"]}


def _given(template: Mapping[str, Any], arguments: Values) -> Values:
    """A template's declared inputs. Raises WorkflowFailed for one that it is not given."""
    names = [item["name"] for item in template.get("inputs", {}).get("parameters", ())]
    missing = [name for name in names if name not in arguments]
    if missing:
        raise WorkflowFailed(f"template {template['name']} is not given {missing}")
    return {name: arguments[name] for name in names}


def _variable(item: Mapping[str, Any], values: Values) -> str:
    """The value of a variable of the manifest."""
    if item.get("value") is not None:
        return _fill(item["value"], values)
    path = item["valueFrom"]["fieldRef"]["fieldPath"]
    return values["pod"] if path == "metadata.name" else _FIELDS[path]


def _fill(text: str, values: Values) -> str:
    """Replace Argo's tags. Raises WorkflowFailed for one without a value."""

    def one(found: re.Match[str]) -> str:
        expression = re.sub(r"parameters\['(.+?)'\]", r"parameters.\1", found[2])
        encoded = _BASE64.fullmatch(expression) if found[1] else None
        name = encoded[1] if encoded else expression
        if name not in values:
            raise WorkflowFailed(f"{found[0]} has no value here")
        return base64.b64encode(values[name].encode()).decode() if encoded else values[name]

    return _TAG.sub(one, text)
