"""`[resources.<step>]`: what a step of the flow gets where Metaflow runs it on another machine.

Nothing here changes a result: no stage reads it, and it is in no cache key.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.ranges import Count, CountOrZero, Positive, setting

DEFAULT = "default"
"""The table that holds for every step, unless the step's own says otherwise: `[resources.default]`."""


class TolerationConfig(Frozen):
    """A taint of nodes that a pod puts up with; Kubernetes' own fields and meaning."""

    key: str | None = setting(
        None, 'of the taint; unset: every taint, with operator "Exists"', origin="Kubernetes"
    )
    operator: Literal["Equal", "Exists"] = setting("Equal", "how the taint is compared", origin="Kubernetes")
    value: str | None = setting(None, "of the taint", origin="Kubernetes")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = setting(
        None, "of the taint; unset: all three", origin="Kubernetes"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator 'Exists' takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator 'Equal' needs key")
        return self


class ResourcesConfig(Frozen):
    """One table. None: not said here; `[resources.default]` or Metaflow's own default holds.

    Batch schedules by queue: `queue` is its alone; tolerations, node_selector, disk, secrets and service_account are
    Kubernetes' alone (a Batch queue's machines and roles say the same).
    """

    image: str | None = setting(None, "container image", origin="Metaflow", min_length=1)
    cpu: Positive | None = setting(None, "cores", unit="cores", origin="Metaflow")
    memory_mb: Count | None = setting(None, "memory", unit="MB", origin="Metaflow")
    gpu: CountOrZero | None = setting(None, "devices", origin="Metaflow")
    disk_mb: Count | None = setting(
        None, "disk of the container; Kubernetes only", unit="MB", origin="Metaflow"
    )
    shared_memory_mb: Count | None = setting(
        None, "shared memory of a container, for workers of a data loader", unit="MB", origin="Metaflow"
    )
    tolerations: tuple[TolerationConfig, ...] | None = setting(
        None, "taints that are put up with; spot nodes usually have some; Kubernetes only", origin="Metaflow"
    )
    node_selector: dict[str, str] | None = setting(
        None, "labels that a node must have; Kubernetes only", origin="Metaflow"
    )
    secrets: tuple[str, ...] | None = setting(
        None, "Kubernetes secrets whose entries become variables of the pod", origin="Metaflow"
    )
    service_account: str | None = setting(
        None, "of the pod; Kubernetes only", origin="Metaflow", min_length=1
    )
    queue: str | None = setting(None, "of AWS Batch", origin="Metaflow", min_length=1)
    retries: Annotated[int, Field(ge=0, le=4)] | None = setting(
        None, "of a failed task, which goes on from its last checkpoint", origin="Metaflow"
    )
    minutes_between_retries: CountOrZero | None = setting(
        None, "pause before a retry", unit="min", origin="Metaflow"
    )
    timeout_minutes: Annotated[int, Field(ge=1, le=10**6)] | None = setting(
        None, "longest time of a task", unit="min", origin="Metaflow"
    )

    def over(self, other: "ResourcesConfig") -> "ResourcesConfig":
        """This table with what it does not say taken from `other`."""
        own = {name for name in type(self).model_fields if getattr(self, name) is not None}
        return other.model_copy(update={name: getattr(self, name) for name in own})
