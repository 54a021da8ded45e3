"""What a real run will take, told from its rehearsal: measured speeds, scaled by what is to be done. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import EvaluationRecord
from artifacts_schema.parts import STARTS_FROM
from artifacts_schema.report import StageSummary
from artifacts_schema.stage_configs import TrainingConfig
from steps.latency.estimates import format_seconds, stage_estimates

_GIB = 1 << 30


@dataclass(frozen=True)
class Told:
    """One stage: seconds of the rehearsal, seconds that the real one will take, and the memory that the task had (bytes)."""

    stage: str
    rehearsed_s: float
    real_s: float
    peak_memory_bytes: int


def tell(
    real: SnapFusionConfig,
    rehearsed: SnapFusionConfig,
    costs: Mapping[str, float],
    stages: Sequence[StageSummary],
    evaluations: Mapping[str, EvaluationRecord],
) -> list[Told]:
    """One row a stage of the rehearsal's report.

    A training is told from its measured images per second: the formula of `stage_estimates` is scaled so that it gives
    that speed; what the rehearsal took beyond it (start-up, loading, checkpoints) is added as it was. An evaluation is told
    from its seconds a picture. All others take what they took, `start` for as many pictures as `data.limit` says.
    """
    return [
        Told(
            row.stage,
            row.wall_time_s,
            _seconds(row, real, rehearsed, costs, evaluations),
            row.peak_memory_bytes,
        )
        for row in stages
    ]


def format_told(told: Sequence[Told], *, price_per_hour: float) -> str:
    """A plain table; the last line is the sum, with the cost where a price is known."""
    lines = [f"  {'stage':44s} {'rehearsal':>10s} {'real run':>10s} {'memory':>10s}"]
    lines += [
        f"  {row.stage:44s} {format_seconds(row.rehearsed_s):>10s} {format_seconds(row.real_s):>10s} "
        f"{row.peak_memory_bytes / _GIB:6.2f} GiB"
        for row in told
    ]
    total = sum(row.real_s for row in told)
    price = f", cost {total / 3600 * price_per_hour:.2f}" if price_per_hour else ""
    rehearsal = format_seconds(sum(row.rehearsed_s for row in told))
    lines.append(f"  {'sum, one after the other':44s} {rehearsal:>10s} {format_seconds(total):>10s}{price}")
    return "\n".join(lines)


def _seconds(
    row: StageSummary,
    real: SnapFusionConfig,
    rehearsed: SnapFusionConfig,
    costs: Mapping[str, float],
    evaluations: Mapping[str, EvaluationRecord],
) -> float:
    stage, _, variant = row.stage.partition(" ")
    if stage in STARTS_FROM and row.images_per_s is not None:
        return _training(row, real, rehearsed, costs)
    record = evaluations.get(variant)
    if stage == "evaluation" and record is not None and record.seconds_per_picture is not None:
        more = real.evaluation.pictures - rehearsed.evaluation.pictures
        return row.wall_time_s + more * record.seconds_per_picture.median
    if stage == "guidance_selection" and record is not None and record.seconds_per_picture is not None:
        scales = len(real.evaluation.guidance_scales)
        drawn = scales * real.evaluation.validation_pictures if scales > 1 else 0
        return row.wall_time_s + drawn * record.seconds_per_picture.median
    if stage == "start" and real.data.limit and rehearsed.data.limit:
        return row.wall_time_s * max(1.0, real.data.limit / rehearsed.data.limit)
    return row.wall_time_s


def _training(
    row: StageSummary, real: SnapFusionConfig, rehearsed: SnapFusionConfig, costs: Mapping[str, float]
) -> float:
    training: TrainingConfig = getattr(rehearsed, row.stage).training
    none = training.model_copy(update={"iterations": 0})
    section = getattr(rehearsed, row.stage).model_copy(update={"training": none})
    without = rehearsed.model_copy(update={row.stage: section})
    short, rest, long = (_estimate(row.stage, config, costs) for config in (rehearsed, without, real))
    images = training.iterations * training.batch_size * training.accumulation
    if row.images_per_s is None or short <= rest:
        return row.wall_time_s
    scale = images / row.images_per_s.median / (short - rest)
    return float(scale * long + max(0.0, row.wall_time_s - scale * short))


def _estimate(stage: str, config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    return next(item.seconds for item in stage_estimates(config, costs) if item.stage == stage)
