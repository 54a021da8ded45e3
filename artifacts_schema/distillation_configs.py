"""The sections of the configuration that the distillations of steps and of the decoder read."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.ranges import Count, Fraction, GuidanceScale, Weight, setting
from artifacts_schema.stage_configs import TrainingConfig


class StepDistillationConfig(Frozen):
    """What teacher_16, student_16 and student_8 share. The stages keep their names whatever the step counts are."""

    intermediate_steps: Count = setting(
        16, "of teacher_16 and student_16, whose own teachers take twice as many", origin="P section 4"
    )
    final_steps: Count = setting(8, "of student_8: half of intermediate_steps", origin="P section 4")
    cfg_probability: Fraction = setting(0.1, "of the guided loss in an optimizer step", origin="P Fig. 7")
    cfg_range: tuple[GuidanceScale, GuidanceScale] = setting(
        (2.0, 14.0), "guidance scales of the guided loss, [low, high]", origin="P section 4"
    )
    gamma: Weight = setting(
        0.2, "weight of the noise loss, rescaled to the distillation loss", origin="P section 5.2"
    )
    dynamic_gamma: bool = setting(
        True, "the noise loss is first brought to the distillation loss's size", origin="P section 5.2"
    )
    caption_dropout: Fraction = setting(
        0.1, "share of empty captions in unguided iterations: keeps the unconditional branch"
    )
    validation_captions: Annotated[int, Field(ge=1, le=10_000)] = setting(
        32, "of every held-out check", unit="captions"
    )
    validation_guidance_scale: GuidanceScale = setting(3.0, "of every held-out check; 1: none")

    def meaning_for(self, *, cfg_aware: bool) -> dict[str, Any]:
        """What a distillation depends on: without the guided loss nothing of its guidance."""
        return self.meaning(without=() if cfg_aware else {"cfg_probability", "cfg_range"})

    @model_validator(mode="after")
    def _check(self) -> "StepDistillationConfig":
        if self.intermediate_steps != 2 * self.final_steps:
            raise ValueError(
                f"intermediate_steps must be twice final_steps, found {self.intermediate_steps} and {self.final_steps}"
            )
        if self.cfg_range[0] > self.cfg_range[1]:
            raise ValueError(f"cfg_range must be (low, high), found {self.cfg_range}")
        return self


class DistillationStageConfig(Frozen):
    """`teacher_16`, `student_16` or `student_8`."""

    training: TrainingConfig = TrainingConfig()


class Student16Config(DistillationStageConfig):
    """`student_16`. Its teacher is named by the stage that it comes from: the evolved UNet itself, or the full one."""

    teacher: Literal["architecture_evolution", "velocity_finetuning"] = setting(
        "architecture_evolution", "the evolved UNet itself, or the full one", origin="P section 4"
    )


class DecoderDistillationConfig(Frozen):
    """`decoder_distillation`."""

    training: TrainingConfig = TrainingConfig()
    pool_size: Annotated[int, Field(ge=2, le=10**8)] = setting(
        128, "latents that the base generates, visited again and again", unit="latents"
    )
    ddim_steps: Annotated[int, Field(ge=1, le=1000)] = setting(
        50, "with which it generates them", origin="P B.2"
    )
    guidance_scale: GuidanceScale = setting(3.0, "with which it generates them; 1: none")
    width_fraction: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = setting(
        0.5, "channels of the small decoder, as a share of the base's", origin="P section 3.2"
    )
    start: Literal["sliced", "fresh"] = setting(
        "sliced", "sliced: from the full decoder's strongest channels"
    )
