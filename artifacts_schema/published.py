"""Latencies that somebody published: quoted, never measured by us, and never what a run decides by."""

from typing import Annotated, Literal

from pydantic import Field

from artifacts_schema.base import Frozen


class PublishedLatency(Frozen):
    """One quoted number: how long one call takes, in milliseconds, and how often a picture needs it."""

    device: str
    model: str
    part: Literal["text_encoder", "unet_step", "decoder", "whole"]
    milliseconds: Annotated[float, Field(gt=0.0, le=10**9)]
    calls: Annotated[int, Field(ge=1, le=1000)] = 1
    batch: Annotated[int, Field(ge=1, le=1000)] | None = None  # None: not stated
    note: str = ""


class PublishedLatencies(Frozen):
    """A file of quotations. Another `schema` than a LatencyTable's: `latency_profile.table` refuses it.

    Whole models only: it says so in `per_block`, since a table without blocks can decide nothing.
    """

    schema_: Literal["snapfusion.published_latencies"] = Field(alias="schema")
    version: Literal[1]
    source: str  # who published it, where
    measured_by_us: Literal[False]
    per_block: str  # what was published of single blocks
    rows: tuple[PublishedLatency, ...] = Field(min_length=1)
