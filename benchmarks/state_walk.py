"""Executes a compiled AWS Step Functions state machine on this machine, job by job; see `benchmarks.pods`.

It reads what `step-functions create --only-json` prints: Task states that submit a Batch job or read DynamoDB, Parallel and
Map states, in the part of JSONPath that Metaflow writes. What it does not know it refuses. Batch's own retries
(`RetryStrategy`) are done here; DynamoDB is whatever client it is given. What it cannot show: IAM, queues, real containers.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.argo_walk import WorkflowFailed
from benchmarks.pods import Pods

_STEP = re.compile(r"\.?\['([^']+)'\]|\.?\[(\d+)\]|\.([A-Za-z_]\w*)")
_KEYS = re.compile(r"\$\.\[((?:'[^']+'(?:,\s*)?)+)\]")
# What a job finds in its container besides its own variables.
_BATCH = {
    "AWS_BATCH_CE_NAME": "environment",
    "AWS_BATCH_JQ_NAME": "queue",
    "AWS_EXECUTION_ENV": "AWS_ECS_EC2",
}


class Machine:
    """One execution of a state machine. `image` are the variables of every container; `dynamodb` is boto3's client."""

    def __init__(self, definition: Any, pods: Pods, image: Mapping[str, str], dynamodb: Any) -> None:
        self._definition, self._pods, self._image, self._dynamodb = definition, pods, image, dynamodb
        self.name = uuid.uuid4().hex[:8]

    def run(self) -> None:
        """From the first state to the last. Raises WorkflowFailed with the failed job's last words."""
        self._states(self._definition, {"Parameters": "{}"}, {"Execution": {"Name": self.name}})

    def _states(self, machine: Any, data: Any, context: Mapping[str, Any]) -> Any:
        """The output of a machine, or of a branch or iterator within one, for the input `data`."""
        name = machine["StartAt"]
        while True:
            state = machine["States"][name]
            kinds: dict[str, Callable[..., Any]] = {
                "Task": self._task, "Parallel": self._parallel, "Map": self._map,
            }  # fmt: skip
            if state["Type"] not in kinds:
                raise WorkflowFailed(f"state {name} is of type {state['Type']}")
            found = kinds[state["Type"]](name, state, data, context)
            if "ResultPath" in state:  # "$.Result" is the one that Metaflow writes
                found = {**data, state["ResultPath"].removeprefix("$."): found}
            data = look_up(state.get("OutputPath", "$"), found, context)
            if state.get("End"):
                return data
            name = state["Next"]

    def _parallel(self, name: str, state: Any, data: Any, context: Mapping[str, Any]) -> list[Any]:
        return _together([lambda b=branch: self._states(b, data, context) for branch in state["Branches"]])  # type: ignore[misc]

    def _map(self, name: str, state: Any, data: Any, context: Mapping[str, Any]) -> list[Any]:
        def one(item: str) -> Any:
            own = {**context, "Map": {"Item": {"Value": item}}}
            return self._states(state["Iterator"], resolve(state["Parameters"], data, own), own)

        items = look_up(state["ItemsPath"], data, context)
        return _together([lambda i=item: one(i) for item in items])  # type: ignore[misc]

    def _task(self, name: str, state: Any, data: Any, context: Mapping[str, Any]) -> Any:
        given = resolve(state["Parameters"], data, context)
        if state["Resource"].endswith(":dynamodb:getItem"):
            return {"Item": self._dynamodb.get_item(**given)["Item"]}
        if not state["Resource"].endswith(":batch:submitJob.sync"):
            raise WorkflowFailed(f"state {name} asks for {state['Resource']}")
        overrides, job = given["ContainerOverrides"], uuid.uuid4().hex
        item = context.get("Map", {}).get("Item", {}).get("Value")
        label = f"{name}-{item}" if item is not None else name
        variables = {
            **self._image,
            **_BATCH,
            **{each["Name"]: str(each["Value"]) for each in overrides["Environment"]},
        }
        attempts = int(given["RetryStrategy"]["Attempts"])
        for attempt in range(attempts):
            own = variables | {"AWS_BATCH_JOB_ID": job, "AWS_BATCH_JOB_ATTEMPT": str(attempt + 1)}
            ended = self._pods.run(label, overrides["Command"], own, (), attempt)
            if ended.status == 0:
                return {"JobId": job, "JobName": given["JobName"], "Parameters": given["Parameters"]}
        raise WorkflowFailed(f"{label} failed in {attempts} attempts:\n{ended.log[-3000:]}")


def resolve(template: Any, data: Any, context: Mapping[str, Any]) -> Any:
    """A payload template: keys that end in `.$` take their values from the input or, with `$$`, the context."""
    if isinstance(template, list):
        return [resolve(item, data, context) for item in template]
    if not isinstance(template, dict):
        return template
    return {
        key.removesuffix(".$"): look_up(value, data, context) if key.endswith(".$") else resolve(value, data, context)
        for key, value in template.items()
    }  # fmt: skip


def look_up(path: str, data: Any, context: Mapping[str, Any]) -> Any:
    """The value at a path; of several names (`$.['a', 'b']`) those that are there. Raises WorkflowFailed."""
    several = _KEYS.fullmatch(path)
    if several and "," in path:
        return {name: data[name] for name in re.findall(r"'([^']+)'", several[1]) if name in data}
    found: Any = context if path.startswith("$$") else data
    rest, position = path.lstrip("$"), 0
    while position < len(rest):
        step = _STEP.match(rest, position)
        try:
            found = found[int(step[2]) if step[2] else step[1] or step[3]]  # type: ignore[index]
        except (TypeError, KeyError, IndexError) as error:
            raise WorkflowFailed(f"{path} has no value in {json.dumps(data)[:500]}") from error
        position = step.end()  # type: ignore[union-attr]
    return found


def _together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
