"""Licences of instruments: what each must order to carry a verdict, and which a report may rely on.

Levels of known quality are drawn by `python -m benchmarks.instruments`; here is what must be better than what, and what
follows from it. Order is judged by paired differences over the same captions, as claims are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts_schema.evaluation import EvaluationRecord, VariantComparison
from artifacts_schema.licences import (
    INSTRUMENTS,
    Instrument,
    InstrumentEvidence,
    Licence,
    LicenceRecord,
    Order,
)
from steps.evaluation.distances import Estimate
from steps.files.errors import EvaluationError

INCLUDED = Path(__file__).parent / "licences"
"""Of the included protocols; those of your own lie in `licences/` beside their folder."""

UNLICENSED = "no verdict: the instrument has no licence"
LOWER_IS_BETTER: frozenset[Instrument] = frozenset(
    {"kernel_distance", "fidelity_latents", "fidelity_features"}
)
_SCORES = (
    ("base_50", "base_2"),
    ("real", "base_2"),
    ("base_2", "shuffled"),
)  # real's and base_50's own order is open
_FIDELITY = (("base_25", "base_8"), ("base_8", "base_4"), ("base_4", "base_2"), ("base_2", "other_noise"))
ORDERS: Mapping[Instrument, tuple[tuple[str, str], ...]] = {
    "kernel_distance": (("real", "base_50"), ("base_50", "base_2"), ("base_2", "untrained")),
    "clip_score": _SCORES,
    "retrieval_top1": _SCORES,
    "fidelity_latents": _FIDELITY,
    "fidelity_features": _FIDELITY,
}
"""By instrument, (better, worse): what is known."""


def evidence(instrument: Instrument, levels: Sequence[Mapping[str, Estimate]]) -> InstrumentEvidence:
    """What an instrument showed; `levels` are its estimates by level, for each set of noise."""
    orders = [
        _order(better, worse, seeds, found, lower=instrument in LOWER_IS_BETTER)
        for seeds, found in enumerate(levels)
        for better, worse in ORDERS[instrument]
    ]
    return InstrumentEvidence(
        instrument=instrument,
        ordered=all(order.apart for order in orders),
        levels={name: tuple(found[name].interval() for found in levels) for name in levels[0]},
        orders=tuple(orders),
    )


def _order(better: str, worse: str, seeds: int, found: Mapping[str, Estimate], *, lower: bool) -> Order:
    difference = found[better].minus(found[worse]).interval()
    apart = difference.high < 0.0 if lower else difference.low > 0.0
    return Order(better=better, worse=worse, seeds=seeds, difference=difference, apart=apart)


def licence_folders(protocols: str, project_root: Path) -> tuple[Path, ...]:
    """Where licences of the protocols that a configuration names may lie."""
    own = () if protocols in ("splits", "frozen") else ((project_root / protocols).parent / "licences",)
    return (*own, INCLUDED)


def licences_of(evaluations: Sequence[EvaluationRecord], folders: Sequence[Path]) -> dict[str, Licence]:
    """The licence of every instrument for these evaluations, which share a protocol; of none, no licences.

    Raises EvaluationError for a file of licences that cannot be read.
    """
    if not evaluations:
        return {}
    first = evaluations[0]
    frozen = str(first.protocol.get("frozen", ""))
    record = _record(frozen, folders) if frozen else None
    if record is not None and first.pictures >= record.pictures:
        return {item.instrument: _licence(item, record) for item in record.instruments}
    if not frozen:
        reason = "measured on the run's own split, not on a frozen protocol (evaluation.protocols)"
    elif record is None:
        reason = f"nobody measured it on the protocol {frozen[:12]}: python -m benchmarks.instruments"
    else:
        reason = f"too few pictures for a claim: licensed at {record.pictures}, found {first.pictures}"
    return {name: Licence(instrument=name, licensed=False, reason=reason) for name in INSTRUMENTS}


def with_licences(item: VariantComparison, licences: Mapping[str, Licence]) -> VariantComparison:
    """The comparison without the verdicts that no licensed instrument stands behind."""
    verdicts: dict[str, Any] = {
        field: UNLICENSED
        for field, instrument in (("distance_verdict", "kernel_distance"), ("clip_verdict", "clip_score"))
        if instrument not in licences or not licences[instrument].licensed
    }
    return item.model_copy(update=verdicts)


def _licence(item: InstrumentEvidence, record: LicenceRecord) -> Licence:
    wrong = [order for order in item.orders if not order.apart]
    where = f"on {record.name} at {record.pictures} pictures"
    if item.ordered and not wrong:
        return Licence(instrument=item.instrument, licensed=True, reason=f"orders what is known {where}")
    said = ", ".join(dict.fromkeys(f"{order.better} from {order.worse}" for order in wrong))
    return Licence(instrument=item.instrument, licensed=False, reason=f"does not tell {said} {where}")


def _record(frozen: str, folders: Sequence[Path]) -> LicenceRecord | None:
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            try:
                found = LicenceRecord.from_json(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise EvaluationError(
                    f"the licences in {path} cannot be read: {error}; make them again"
                ) from error
            if found.protocol == frozen:
                return found
    return None
