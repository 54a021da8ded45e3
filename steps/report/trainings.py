"""The report's part on trainings: what each took and measured of itself, and its curve."""

from collections.abc import Mapping

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record
from artifacts_schema.training import TrainingRecord
from steps.report import charts
from steps.report.content import Block, Chart, Heading, Table

# What trainings measure of themselves, for people.
_IN_WORDS = {
    "teacher_mse_start": "mean square to the teacher {:.3g} before",
    "teacher_mse": "{:.3g} after",
    "parameter_ratio": "{:.1f} times fewer parameters",
    "mac_ratio": "{:.1f} times fewer MAC",
    "psnr_start_db": "teacher's pictures to {:.1f} dB before",
    "psnr_db": "{:.1f} dB after",
    "held_out": "on {:.0f} held out",
    "psnr_real_db": "real ones to {:.1f} dB",
}


def trainings(records: Mapping[str, TrainingRecord], evolution: EvolutionRecord | None) -> list[Block]:
    """The blocks, in reading order; none without a training. `records` by stage; the trainings of an evolution's rounds
    are one curve.
    """
    if not records and evolution is None:
        return []
    curves = {name: record.curve for name, record in records.items() if record.curve}
    if evolution is not None:
        rounds = tuple(row for item in evolution.rounds for row in item.curve)
        curves |= {"architecture_evolution": rounds or evolution.curve}
    rows = tuple(
        (
            name,
            str(record.iterations),
            str(record.batch_size),
            f"{record.images_per_s.median:.1f} images/s" if record.images_per_s else "-",
            _clock(record),
            "shipped weights" if record.warm_start else "-",
            _metrics(record),
        )
        for name, record in records.items()
    )
    headers = ("training", "iterations", "batch", "throughput", "time", "warm start", "measured")
    blocks: list[Block] = [Heading("Training"), Table(headers, rows)]
    if any(curves.values()):
        blocks.append(
            Chart(charts.training_curves({k: v for k, v in curves.items() if v}), "Optimised loss.")
        )
    return blocks


def _metrics(record: TrainingRecord) -> str:
    """A training's own numbers in words; one without words under its name. The table on top has the decoders' sizes."""
    shown = [
        _IN_WORDS.get(name, f"{name} {{:.4g}}").format(value)
        for name, value in record.metrics.items()
        if not name.startswith(("parameters_", "macs_"))
    ]
    if (found := record.selection) is not None:
        state = f"iteration {found.chosen}" if found.chosen else "its start"
        shown.append(
            f"handed on: {state} ({found.measure} {found.at(found.chosen):.3g}, at the start {found.at(0):.3g})"
        )
    return ", ".join(shown) or "-"


def _clock(record: Record) -> str:
    return f"{record.provenance.wall_time_s:.0f} s" if record.provenance else "-"
