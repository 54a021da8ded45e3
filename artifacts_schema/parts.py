"""Which parts of the method a run does: what follows when stages are left out (`run.skip`). Imports no torch.

A stage that is left out hands on what it would have started from, so that every later stage finds what it reads.
"""

from collections.abc import Collection
from typing import ClassVar, Literal

from artifacts_schema.base import Record
from artifacts_schema.references import WeightsRef

SkippableStage = Literal[
    "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8",
    "decoder_distillation",
]  # fmt: skip
"""The stages that train. All others check, measure, convert or tell, and are part of every run."""

STARTS_FROM: dict[str, str] = {
    "velocity_finetuning": "",
    "robust_training": "velocity_finetuning",
    "architecture_evolution": "robust_training",
    "teacher_16": "velocity_finetuning",
    "student_16": "architecture_evolution",
    "student_8": "student_16",
    "decoder_distillation": "",
}
"""The stage whose weights a stage starts from; empty for the base's own."""

_V_STAGES = ("robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8")


class SkippedRecord(Record):
    """Left by a stage that the run was not asked for (`run.skip`).

    `weights` are those that it hands on, made by the stage `hands_on`; None and "" stand for the base's own. `grid_steps`
    is the number of steps that they were distilled to, None where they were not.
    """

    schema_name: ClassVar[str] = "snapfusion.skipped"
    schema_version: ClassVar[int] = 1

    hands_on: str = ""
    weights: WeightsRef | None = None
    grid_steps: int | None = None


def check_parts(skip: Collection[str]) -> None:
    """Raises ValueError, saying what to do, where a stage is to run without what it needs, or for nobody."""
    kept = [stage for stage in _V_STAGES if stage not in skip]
    if "velocity_finetuning" in skip and kept:
        raise ValueError(
            f"skip names velocity_finetuning, but {kept[0]} trains a UNet that predicts v; take velocity_finetuning out "
            f"(for a base that predicts v already it costs nothing) or skip {', '.join(kept)}, too"
        )
    if "architecture_evolution" in skip and "robust_training" not in skip:
        raise ValueError(
            "skip names architecture_evolution, which robust_training prepares the UNet for; skip robust_training, too"
        )
    if "student_8" not in skip and "teacher_16" in skip:
        raise ValueError(
            "skip names teacher_16, which teaches student_8; take it out, or skip student_8, too"
        )
    if "student_8" in skip and "teacher_16" not in skip:
        raise ValueError(
            "skip names student_8, whom alone teacher_16 teaches; skip teacher_16, too, or take student_8 out"
        )
    if "student_16" in skip and not {"student_8", "architecture_evolution"} & set(skip):
        raise ValueError(
            "skip names student_16, but student_8 starts from it; only where architecture_evolution is skipped, too, can it "
            "start from teacher_16, which is the same network: take student_16 out, or skip student_8 and teacher_16, too"
        )


def made_by(stage: str, skip: Collection[str]) -> str:
    """The stage whose weights stand in a stage's record: itself, or what it hands on; empty for the base's own."""
    while stage and stage in skip:
        stage = STARTS_FROM[stage]
    return stage


def start_of_student_8(skip: Collection[str]) -> str:
    """The stage whose weights student_8 starts from; without pruning and without student_16 that is its own teacher."""
    return "teacher_16" if "student_16" in skip else "student_16"


def shipped_steps(skip: Collection[str], *, base: int, intermediate: int, final: int) -> int:
    """Sampling steps of the UNet that ships: what it was distilled to, else those of the base."""
    return {"student_8": final, "student_16": intermediate}.get(made_by("student_8", skip), base)


def ships(skip: Collection[str]) -> str:
    """The evaluated variant that is what ships."""
    if "decoder_distillation" not in skip:
        return "student_8_small_decoder"
    return "student_8" if made_by("student_8", skip) else "base_50"


def variants_of(variants: Collection[str], skip: Collection[str]) -> tuple[str, ...]:
    """Those of the variants that a run makes."""
    gone = {stage for stage in ("teacher_16", "student_16") if stage in skip}
    if not made_by("student_8", skip):
        gone.add("student_8")
    if "decoder_distillation" in skip:
        gone |= {f"student_{steps}_small_decoder" for steps in (8, 4, 2)}
    if gone & {"student_8", "student_8_small_decoder"}:
        gone.add("student_8_compressed")
    return tuple(variant for variant in variants if variant not in gone)
