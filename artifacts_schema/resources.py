"""`[resources.<step>]`: what a step of the flow gets where Metaflow runs it on another machine.

Nothing here changes a result: no stage reads it, and it is in no cache key.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.ranges import Count, CountOrZero, Positive

DEFAULT = "default"
"""The table that holds for every step, unless the step's own says otherwise: `[resources.default]`."""


class TolerationConfig(Frozen):
    """A taint of nodes that a pod puts up with; Kubernetes' own fields and meaning."""

    key: str | None = None  # None: every taint, with operator "Exists"
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None  # None: all three

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

    image: str | None = Field(None, min_length=1)
    cpu: Positive | None = None
    memory_mb: Count | None = None
    gpu: CountOrZero | None = None
    disk_mb: Count | None = None
    shared_memory_mb: Count | None = None  # /dev/shm, which workers of a data loader share
    tolerations: tuple[TolerationConfig, ...] | None = None  # spot nodes are usually tainted
    node_selector: dict[str, str] | None = None
    secrets: tuple[str, ...] | None = None  # Kubernetes secrets whose entries become variables of the pod
    service_account: str | None = Field(None, min_length=1)
    queue: str | None = Field(None, min_length=1)
    retries: Annotated[int, Field(ge=0, le=4)] | None = (
        None  # Metaflow's limit; goes on from the last checkpoint
    )
    minutes_between_retries: CountOrZero | None = None
    timeout_minutes: Annotated[int, Field(ge=1, le=10**6)] | None = None

    def over(self, other: "ResourcesConfig") -> "ResourcesConfig":
        """This table with what it does not say taken from `other`."""
        own = {name for name in type(self).model_fields if getattr(self, name) is not None}
        return other.model_copy(update={name: getattr(self, name) for name in own})
