"""Latency kit: which models a device is to time, and what it measured. Written as JSON beside the packages."""

import math
from collections import Counter
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen, Record
from artifacts_schema.bundle import TensorContract
from artifacts_schema.latency import PartKind

BASELINE = "baseline"
"""Id of the model of a single operation: what calling any model costs."""


class TimedModel(Frozen):
    """One package. `sha256` is over its files, see `steps.latency.kit.package_hash`."""

    package: str
    sha256: str
    inputs: tuple[TensorContract, ...]


class TimedPart(Frozen):
    """A row of the latency table and the model that is timed for it; equal parts share a model."""

    model: str
    kind: PartKind
    parameters: int = Field(ge=0)
    input_shapes: tuple[tuple[int, ...], ...]


class LatencyKit(Record):
    """`manifest.json` of a folder of packages that a device is to time.

    `parts` maps the rows of a latency table to ids of `models`, of which `baseline` is the model of one operation.
    `model`, `batch`, `latent_shape` and `tokens` say what the table will be of, as in LatencyTable.
    """

    schema_name: ClassVar[str] = "snapfusion.latency_kit"
    schema_version: ClassVar[int] = 1

    stage: str = "latency_profile"
    model: str
    batch: int = Field(ge=1)
    latent_shape: tuple[int, int, int]
    tokens: int
    minimum_deployment_target: str
    attention: str
    models: dict[str, TimedModel]
    parts: dict[str, TimedPart]

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = sorted({part.model for part in self.parts.values()} - set(self.models))
        if unknown or BASELINE not in self.models:
            raise ValueError(f"the kit lacks the models {', '.join(unknown) or BASELINE}")
        return self


class TimedEntry(Frozen):
    """Milliseconds of every call of one model, in order; the calls before them that warmed it up are left out."""

    model: str
    sha256: str
    samples_ms: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        bad = [value for value in self.samples_ms if not (math.isfinite(value) and value >= 0.0)]
        if bad:
            raise ValueError(f"{self.model}: expected times of 0 ms or more, found {bad[0]}")
        return self


class DeviceMeasurement(Record):
    """`latency.json`, what `measure_on_mac.py` leaves.

    `kit` is the hash of the manifest.json it measured. `method` is `benchmarker` (coremltools' MLModelBenchmarker,
    which also drives an iPhone through a Mac) or `predict` (timed calls of MLModel.predict on the Mac itself).
    """

    schema_name: ClassVar[str] = "snapfusion.device_measurement"
    schema_version: ClassVar[int] = 1

    stage: str = "latency_profile"
    kit: str
    device: str
    os: str
    coremltools: str
    compute_units: Literal["ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"]
    method: Literal["benchmarker", "predict"]
    warmup: int = Field(ge=0)
    entries: tuple[TimedEntry, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        twice = [model for model, count in Counter(e.model for e in self.entries).items() if count > 1]
        if twice:
            raise ValueError(f"measured more than once: {', '.join(sorted(twice))}")
        return self
