"""What is evaluated: the variants of a run. Imports no torch, since cache keys are made of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts_schema.config import EvaluationConfig, StepDistillationConfig
from artifacts_schema.references import WeightsRef

if TYPE_CHECKING:
    from steps.diffusion.parameterization import PredictionType
    from steps.diffusion.sampler import Sampler


@dataclass(frozen=True)
class Variant:
    """What is evaluated: a UNet, how it is sampled, and a decoder. None stands for the base's own."""

    name: str
    title: str
    sampler: "Sampler"
    steps: int
    unet: WeightsRef | None
    prediction_type: "PredictionType"
    decoder: WeightsRef | None = None


def variants(
    *,
    evaluation: EvaluationConfig,
    distillation: StepDistillationConfig,
    prediction_type: "PredictionType",
    teacher: WeightsRef,
    student_intermediate: WeightsRef,
    student: WeightsRef,
    decoder: WeightsRef,
) -> dict[str, Variant]:
    """Every variant by name. Titles carry the real step counts, whatever the stages are called."""
    many, middle, few = evaluation.base_steps, distillation.intermediate_steps, distillation.final_steps
    items = [
        Variant("base_50", f"base, {many} steps", "ddim", many, None, prediction_type),
        Variant("base_8", f"base, {few} steps", "ddim", few, None, prediction_type),
        Variant("base_8_dpm", f"base, {few} steps, DPM-Solver++", "dpm", few, None, prediction_type),
        Variant("teacher_16", f"teacher, {middle} steps", "ddim", middle, teacher, "v_prediction"),
        Variant(
            "student_16", f"student, {middle} steps", "ddim", middle, student_intermediate, "v_prediction"
        ),
        Variant("student_8", f"student, {few} steps", "ddim", few, student, "v_prediction"),
        Variant(
            "student_8_small_decoder",
            f"student, {few} steps, small decoder",
            "ddim",
            few,
            student,
            "v_prediction",
            decoder,
        ),
    ]
    return {item.name: item for item in items}
