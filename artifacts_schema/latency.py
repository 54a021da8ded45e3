"""Record of how long every part of the base model takes."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen, Measurement, Record

LatencyBackend = Literal["device", "torch-cpu", "torch-cuda", "ort-cpu", "macs"]

PartKind = Literal[
    "attention", "resnet", "stem", "resampler", "time_embedding", "text_encoder", "decoder", "unet"
]

WHOLE_MODELS: frozenset[str] = frozenset({"text_encoder", "decoder", "unet"})
"""Rows that are models of their own and not parts of the UNet."""


class LatencyRow(Frozen):
    """One part: how long it takes at its true input shapes, and how many parameters it has.

    `mean` is over the quieter half of the repeats. It, not the median, adds up: on a busy machine the time
    taken by other programs falls into a few repeats of each short part and into every repeat of a long one,
    so that the medians of the short parts lack it.
    """

    kind: PartKind
    latency: Measurement
    mean: float | None = None  # None: a table that was made elsewhere and knows no means
    parameters: int = Field(ge=0)
    input_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def cost(self) -> float:
        """What sums are made of: the mean where there is one, else the median."""
        return self.latency.median if self.mean is None else self.mean


class LatencyTable(Record):
    """Latency of every block of the base UNet in a guided step, and of its surroundings.

    `backend` is the provenance of the numbers: `device` (a phone or a Mac), `torch-cpu`, `torch-cuda`,
    `ort-cpu`, or `macs` (multiply-accumulates, deterministic). Tables of unlike backend, device, dtype, batch
    or model never mix. `rows` maps the id of a part to its row: every block, `conv_in`, `conv_out`,
    `time_embedding`, the resamplers (`down.0.downsamplers.0`), and the whole models `unet` (the guided step),
    `text_encoder` and `decoder`.
    """

    schema_name: ClassVar[str] = "snapfusion.latency"
    schema_version: ClassVar[int] = 1
    # Measured times differ between repeats of the very same profile; they are what later stages decide on, so
    # they belong to the identity.
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance"})

    stage: str = "latency_profile"
    backend: LatencyBackend
    device: str
    threads: int = 0
    dtype: str = "float32"
    batch: int = Field(ge=1)
    model: str  # hash of the base UNet's geometry, steps.unet.blocks.config_hash
    latent_shape: tuple[int, int, int]
    tokens: int
    unit: Literal["ms", "MAC"]
    timing: str = "in-situ"  # how the parts were timed
    rows: dict[str, LatencyRow]
    sum_of_parts: float  # sum of the parts' costs
    whole: float  # median of the guided step, timed without looking inside
    explained: float  # sum of parts over whole, both of the same forward passes; 1 is perfect

    def parts(self) -> dict[str, LatencyRow]:
        """Rows of the UNet's parts."""
        return {name: row for name, row in self.rows.items() if name not in WHOLE_MODELS}

    def cost(self, part: str) -> float:
        """What one part adds to a sum, in the table's unit. Raises KeyError for an unknown part."""
        return self.rows[part].cost

    def shares(self) -> dict[str, dict[str, float]]:
        """Per part of the UNet its share of the time and of the parameters, both of the sum over parts."""
        parts = self.parts()
        time = sum(row.cost for row in parts.values())
        parameters = max(1, sum(row.parameters for row in parts.values()))
        return {
            name: {"time": row.cost / time, "parameters": row.parameters / parameters}
            for name, row in parts.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "unet" not in self.rows:
            raise ValueError("the table lacks the row 'unet', the whole guided step")
        sums = (self.whole, self.sum_of_parts, self.explained)
        if min(sums) <= 0.0:
            raise ValueError(f"whole, sum_of_parts and explained must be positive, found {sums}")
        units = {row.latency.unit for row in self.rows.values()}
        if units != {self.unit}:
            raise ValueError(f"every row must be in {self.unit}, found {sorted(units)}")
        if (self.unit == "MAC") != (self.backend == "macs"):
            raise ValueError(f"backend {self.backend} does not go with unit {self.unit}")
        negative = [name for name, row in self.rows.items() if row.latency.median < 0.0]
        if negative:
            raise ValueError(f"negative latency in {', '.join(negative)}")
        return self
