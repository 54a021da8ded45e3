"""Which stages can be left out together, and what is there then."""

from typing import get_args

import pytest

from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from artifacts_schema.parts import (
    STARTS_FROM,
    SkippableStage,
    made_by,
    shipped_steps,
    ships,
    start_of_student_8,
    variants_of,
)

PRUNING = ("robust_training", "architecture_evolution")
STEPS = ("teacher_16", "student_16", "student_8")
UNET = ("velocity_finetuning", *PRUNING, *STEPS)
VARIANTS = SnapFusionConfig().evaluation.variants

PARTS = {
    # skip: made_by student_8, steps, what ships, what is not evaluated
    (): ("student_8", 8, "student_8_small_decoder", set()),
    ("decoder_distillation",): ("student_8", 8, "student_8", {"student_8_small_decoder"}),
    (*PRUNING, "student_16"): ("student_8", 8, "student_8_small_decoder", {"student_16"}),
    STEPS: ("architecture_evolution", 50, "student_8_small_decoder", {"teacher_16", "student_16"}),
    ("teacher_16", "student_8"): ("student_16", 16, "student_8_small_decoder", {"teacher_16"}),
    UNET: ("", 50, "student_8_small_decoder", {"teacher_16", "student_16", "student_8"}),
    (*UNET, "decoder_distillation"): (
        "", 50, "base_50", {"teacher_16", "student_16", "student_8", "student_8_small_decoder"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("skip", PARTS, ids=lambda skip: "-".join(skip) or "everything")
def test_what_a_part_leaves(skip: tuple[str, ...]) -> None:
    maker, steps, shipped, gone = PARTS[skip]
    config = parse_config({"run": {"skip": list(skip)}})
    assert set(config.run.skip) == set(skip)
    assert made_by("student_8", skip) == maker
    assert shipped_steps(skip, base=50, intermediate=16, final=8) == steps
    assert ships(skip) == shipped
    assert set(VARIANTS) - set(variants_of(VARIANTS, skip)) == gone


def test_without_pruning_student_8_may_start_from_its_teacher() -> None:
    assert start_of_student_8(()) == "student_16"
    assert start_of_student_8((*PRUNING, "student_16")) == "teacher_16"


@pytest.mark.parametrize(
    ("skip", "sentence"),
    [
        (["teacher_16"], "teaches student_8; take it out, or skip student_8, too"),
        (["student_8"], "skip teacher_16, too, or take student_8 out"),
        (["student_16"], "take student_16 out, or skip student_8 and teacher_16, too"),
        (["architecture_evolution"], "skip robust_training, too"),
        (["velocity_finetuning", *PRUNING], "skip teacher_16, student_16, student_8, too"),
        (["latency_profile"], "run.skip.0"),
        (["evaluation"], "run.skip.0"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_what_to_do(skip: list[str], sentence: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        parse_config({"run": {"skip": skip}})
    assert sentence in str(refused.value)


def test_a_run_that_evaluates_nothing_it_makes_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="none of which a run makes that skips"):
        parse_config({"run": {"skip": list(UNET)}, "evaluation": {"variants": ["student_8", "teacher_16"]}})


def test_every_stage_that_can_be_left_out_hands_on_that_of_another() -> None:
    assert set(get_args(SkippableStage)) == set(STARTS_FROM)
