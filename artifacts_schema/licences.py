"""Which instrument may carry a verdict: the one that was shown to order what is known (docs/adr/0037)."""

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from artifacts_schema.base import Frozen, Interval, Record

Instrument = Literal[
    "kernel_distance", "clip_score", "retrieval_top1", "fidelity_latents", "fidelity_features"
]
INSTRUMENTS: tuple[Instrument, ...] = get_args(Instrument)
_OF_METRIC: dict[str, Instrument] = {
    "distance_ratio": "kernel_distance",
    "distance_difference": "kernel_distance",
    "clip_difference": "clip_score",
    "retrieval_top1": "retrieval_top1",
}


class Licence(Frozen):
    """Whether an instrument may carry a verdict in one report, and why; without a licence its numbers are only shown."""

    instrument: Instrument
    licensed: bool
    reason: str


class Order(Frozen):
    """Two levels that an instrument had to tell apart: `better` must be better than `worse`.

    `difference` is better minus worse, paired, over the same captions; `apart` says that its 95 % interval lies on the
    right side of zero. `seeds` names the set of noise.
    """

    better: str
    worse: str
    seeds: int
    difference: Interval
    apart: bool


class InstrumentEvidence(Frozen):
    """What one instrument showed on one protocol: every level's value by set of noise, and every order."""

    instrument: Instrument
    ordered: bool
    levels: dict[str, tuple[Interval, ...]]
    orders: tuple[Order, ...]


class LicenceRecord(Record):
    """Left by `python -m benchmarks.instruments` for one protocol and its evaluator, read by every report.

    `protocol` is the protocol file's hash, `evaluator` and `features` name what measured, `pictures` how many of each
    level: a report of fewer pictures gets no licence from it.
    """

    schema_name: ClassVar[str] = "snapfusion.licences"
    schema_version: ClassVar[int] = 1

    name: str  # of the protocol
    protocol: str
    evaluator: str
    features: str
    pictures: int
    instruments: tuple[InstrumentEvidence, ...]


def instrument_of(metric: str) -> Instrument | None:
    """The instrument behind a published number, such as `student8_vs_base50.clip_difference`; None for one of no quality."""
    return _OF_METRIC.get(metric.rpartition(".")[2])


def licence_of(licences: Mapping[str, Licence], metric: str) -> Licence | None:
    """The licence that a verdict on `metric` needs, out of a report's `licences`.

    None for a number that no instrument stands behind (a latency, a size): it needs none. A report without an entry, such
    as one of an older program, has no licence.
    """
    instrument = instrument_of(metric)
    if instrument is None:
        return None
    missing = Licence(instrument=instrument, licensed=False, reason="the report names no licence")
    return licences.get(instrument, missing)
