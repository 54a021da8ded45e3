"""The one place where the flow meets other machines: Kubernetes (and Argo Workflows) or AWS Batch (and Step Functions).

Metaflow's engines do the work. `RemoteCompute` gives every step Metaflow's own decorators from `[resources.<step>]`, and
refuses before anything is submitted what could only fail there. A local run gets none of it. docs/clusters.md
"""

import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from metaflow import FlowMutator, metaflow_config
from metaflow.exception import MetaflowException

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.resources import DEFAULT, ResourcesConfig
from flows.fetched import named_inputs
from flows.remote_settings import check_settings

Engine = Literal["kubernetes", "batch"]
_COMMANDS: dict[str, Engine] = {
    "kubernetes": "kubernetes",
    "argo-workflows": "kubernetes",
    "batch": "batch",
    "step-functions": "batch",
}
_BATCH_TAKES = ("image", "cpu", "memory", "gpu", "shared_memory", "queue")
_KUBERNETES_TAKES = (
    "image", "cpu", "memory", "gpu", "disk", "shared_memory", "tolerations", "node_selector", "secrets",
    "service_account",
)  # fmt: skip


class RemoteRefused(MetaflowException):
    """Shown by Metaflow without a traceback."""

    headline = "Run on other machines refused"


class RemoteCompute(FlowMutator):
    """Attaches @kubernetes or @batch, @retry, @timeout and @environment; what `--with` says explicitly comes first."""

    def mutate(self, mutable_flow: Any) -> None:
        """See Metaflow's FlowMutator. Raises RemoteRefused."""
        config = parse_config(dict(mutable_flow.configs)["config"].to_dict())
        steps = dict(mutable_flow.steps)
        found = self.tables(config, steps, sys.argv[1:])
        engine, submits = engine_of(sys.argv[1:], os.environ)
        if engine is None:
            return
        if submits:
            problems = problems_of(config, found, engine)
            problems += check_settings(engine, sys.argv[1:], [item.queue for item in found.values()])
            if problems:
                raise RemoteRefused("nothing was submitted:\n  " + "\n  ".join(problems))
            for line in notices(config):
                print(f"note: {line}", file=sys.stderr)
        for name, step in steps.items():
            for decorator, arguments in decorators(found[name], engine).items():
                _attach(step, decorator, arguments)

    def tables(
        self, config: SnapFusionConfig, steps: Iterable[str], _: Sequence[str]
    ) -> Mapping[str, ResourcesConfig]:
        """The table of every step, whatever the command line's arguments. Raises RemoteRefused for one of no step."""
        _check_names(config, steps)
        return {name: resources_of(config, name) for name in steps}


def engine_of(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Engine | None, bool]:
    """What runs the steps, and whether this command submits them. A task on such a machine is told by its environment."""
    if "METAFLOW_KUBERNETES_WORKLOAD" in environment:
        return "kubernetes", False
    if "AWS_BATCH_JOB_ID" in environment:
        return "batch", False
    for command, engine in _COMMANDS.items():
        if (
            command in arguments and "step" in arguments
        ):  # Metaflow's own process, which watches one pod or job
            return engine, False
        if command in arguments and "create" in arguments:
            return engine, True
    for name, value in zip(arguments, [*arguments[1:], ""], strict=False):
        spec = (
            value if name == "--with" else name.removeprefix("--with=") if name.startswith("--with=") else ""
        )
        if spec.partition(":")[0] in ("kubernetes", "batch"):
            return _COMMANDS[spec.partition(":")[0]], True
    return None, False


def on_other_machine() -> bool:
    """True in a pod or a Batch job."""
    engine, submits = engine_of((), os.environ)
    return engine is not None and not submits


def resources_of(config: SnapFusionConfig, step: str) -> ResourcesConfig:
    """A step's own table over `[resources.default]`."""
    default = config.resources.get(DEFAULT, ResourcesConfig())
    return config.resources.get(step, ResourcesConfig()).over(default)


def decorators(resources: ResourcesConfig, engine: Engine) -> dict[str, dict[str, Any]]:
    """Metaflow's decorators by name, with their arguments; what the table does not say is left to Metaflow."""
    every = {
        "image": resources.image,
        "cpu": resources.cpu,
        "memory": resources.memory_mb,
        "gpu": resources.gpu or None,
        "disk": resources.disk_mb,
        "shared_memory": resources.shared_memory_mb,
        "tolerations": [item.model_dump(exclude_none=True) for item in resources.tolerations or ()] or None,
        "node_selector": resources.node_selector,
        "secrets": list(resources.secrets or ()) or None,
        "service_account": resources.service_account,
        "queue": resources.queue,
    }
    takes = _KUBERNETES_TAKES if engine == "kubernetes" else _BATCH_TAKES
    found: dict[str, dict[str, Any]] = {
        engine: {name: every[name] for name in takes if every[name] is not None},
        "environment": {"vars": pod_environment()},
    }
    if resources.retries is not None:
        pause = 2 if resources.minutes_between_retries is None else resources.minutes_between_retries
        found["retry"] = {"times": resources.retries, "minutes_between_retries": pause}
    if resources.timeout_minutes is not None:
        found["timeout"] = {"minutes": resources.timeout_minutes}
    return found


def pod_environment() -> dict[str, str]:
    """Variables that Metaflow does not pass on. No keys: those come from secrets, or from the machine's own role."""
    # Else Metaflow installs boto3 and requests in every pod; the pipeline's image has them.
    found = {"METAFLOW_SKIP_INSTALL_DEPENDENCIES": "1"}
    if metaflow_config.S3_ENDPOINT_URL:  # Metaflow's own name for it; the store and its tools read boto3's
        found["AWS_ENDPOINT_URL_S3"] = metaflow_config.S3_ENDPOINT_URL
    return found


def _attach(step: Any, name: str, arguments: Mapping[str, Any]) -> None:
    """Add a decorator. One that the command line brought keeps what was said there."""
    said: dict[str, Any] = {}
    for _, _, _, found in step.get_decorator_specs(name):
        if name not in _COMMANDS:
            return
        said = {key: value for key, value in found.items() if value != _defaults(name).get(key)}
    step.add_decorator(name, deco_kwargs={**arguments, **said}, duplicates=step.OVERRIDE)


def _defaults(engine: str) -> Mapping[str, Any]:
    if engine == "batch":
        from metaflow.plugins.aws.batch.batch_decorator import BatchDecorator as Decorator
    else:
        from metaflow.plugins.kubernetes.kubernetes_decorator import KubernetesDecorator as Decorator
    found: Mapping[str, Any] = Decorator.defaults
    return found


def _check_names(config: SnapFusionConfig, steps: Iterable[str]) -> None:
    valid = [DEFAULT, *sorted(steps)]
    unknown = [name for name in config.resources if name not in valid]
    if unknown:
        close = difflib.get_close_matches(unknown[0], valid, n=1, cutoff=0.5)
        hint = f"did you mean 'resources.{close[0]}'?" if close else "steps are: " + ", ".join(valid)
        raise RemoteRefused(f"[resources.{unknown[0]}] names no step of the flow; {hint}")


def problems_of(config: SnapFusionConfig, found: Mapping[str, ResourcesConfig], engine: Engine) -> list[str]:
    """What would only fail over there, one line each. `found` are the steps' tables."""
    problems = []
    if not config.store.root.startswith("s3://"):
        problems.append(
            f"store.root is {config.store.root!r}, a folder of this machine that no other sees: "
            'name one on S3, such as [store] root = "s3://bucket/prefix"'
        )
    setting = "KUBERNETES_CONTAINER_IMAGE" if engine == "kubernetes" else "BATCH_CONTAINER_IMAGE"
    without = sorted(name for name, item in found.items() if item.image is None)
    if without and not getattr(metaflow_config, setting) and "image=" not in " ".join(sys.argv):  # of --with
        which = f" for {', '.join(without)}" if len(without) < len(found) else ""
        problems.append(
            f"no image is named{which}: set image in [resources.{DEFAULT}], or METAFLOW_{setting}; the "
            "pipeline's packages must be in it (infra/docker/Dockerfile)"
        )
    own = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), None)
    if own and not metaflow_config.S3_ENDPOINT_URL:
        problems.append(
            f"{own} is set here, and METAFLOW_S3_ENDPOINT_URL is not: other machines would ask Amazon's S3; "
            "set it to the address at which they reach the server"
        )
    return problems


def notices(config: SnapFusionConfig) -> list[str]:
    """What a user of other machines should know of this configuration."""
    found = []
    profile = config.latency_profile
    by_table = config.architecture_evolution.decide_by == "table"
    if profile.table is None and profile.backend != "macs" and by_table:
        found.append(
            f"latency_profile is measured ({profile.backend}) on whichever node it runs, and its key holds the processor's "
            "model: on mixed nodes a later run profiles again and repeats architecture_evolution and all after it. Import "
            'a table (latency_profile.table), count MACs (backend = "macs"), or pin the node ([resources.latency_profile] '
            "node_selector)"
        )
    inside = sorted(
        {
            place
            for place in named_inputs(config)
            if "://" not in place and not PurePosixPath(place).is_absolute()
        }
    )
    if inside:
        found.append(
            f"{', '.join(inside)}: taken from the folder that the image names in SNAPFUSION_PROJECT; "
            "s3:// places need nothing in the image"
        )
    return found
