"""What is evaluated: the variants of a run. Imports no torch, since cache keys are made of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import made_by, shipped_steps

if TYPE_CHECKING:
    from steps.diffusion.sampler import Sampler

MODELS: dict[str, tuple[str, str]] = {
    "base_50": ("", ""),
    "base_8": ("", ""),
    "base_8_dpm": ("", ""),
    "base_4_dpm": ("", ""),
    "base_2_dpm": ("", ""),
    "teacher_16": ("teacher_16", ""),
    "student_16": ("student_16", ""),
    "student_8": ("student_8", ""),
    "student_8_small_decoder": ("student_8", "decoder_distillation"),
    "student_8_compressed": ("student_8", "decoder_distillation"),
    "student_4_small_decoder": ("student_4", "decoder_distillation"),
    "student_2_small_decoder": ("student_2", "decoder_distillation"),
}
"""The stages whose UNet and decoder a variant draws with; empty for the base's own."""

COMPRESSED = "student_8_compressed"
"""The packages that ship, drawn with by the interpreter at the guidance scale of what they were made of."""
GUIDED_AS = {COMPRESSED: "student_8_small_decoder"}


@dataclass(frozen=True)
class Variant:
    """How one variant is sampled. Titles carry the real step counts, whatever the stages are called."""

    name: str
    title: str
    sampler: "Sampler"
    steps: int


_WORDS = {"": "base", "velocity_finetuning": "v UNet", "architecture_evolution": "pruned UNet"}


def steps_of_what_ships(config: SnapFusionConfig) -> int:
    """Sampling steps of the UNet that ships."""
    distillation = config.step_distillation
    return shipped_steps(
        config.run.skip,
        base=config.evaluation.base_steps,
        intermediate=distillation.intermediate_steps,
        final=distillation.final_steps,
    )


def variant_of(name: str, config: SnapFusionConfig) -> Variant:
    """The variant of this name, one of `MODELS`. Where student_8 is left out, its variants are what ships instead."""
    many, distillation = config.evaluation.base_steps, config.step_distillation
    middle, few = distillation.intermediate_steps, distillation.final_steps
    last, of_last = steps_of_what_ships(config), made_by("student_8", config.run.skip)
    student = _WORDS.get(of_last, "student")
    items = (
        Variant("base_50", f"base, {many} steps", "ddim", many),
        Variant("base_8", f"base, {few} steps", "ddim", few),
        Variant("base_8_dpm", f"base, {few} steps, DPM-Solver++", "dpm", few),
        Variant("base_4_dpm", f"base, {few // 2} steps, DPM-Solver++", "dpm", max(1, few // 2)),
        Variant("base_2_dpm", f"base, {few // 4} steps, DPM-Solver++", "dpm", max(1, few // 4)),
        Variant("teacher_16", f"teacher, {middle} steps", "ddim", middle),
        Variant("student_16", f"student, {middle} steps", "ddim", middle),
        Variant("student_8", f"{student}, {last} steps", "ddim", last),
        Variant("student_8_small_decoder", f"{student}, {last} steps, small decoder", "ddim", last),
        Variant(COMPRESSED, f"{student}, {last} steps, small decoder, as it ships", "ddim", last),
        Variant("student_4_small_decoder", f"student, {few // 2} steps, small decoder", "ddim", few // 2),
        Variant("student_2_small_decoder", f"student, {few // 4} steps, small decoder", "ddim", few // 4),
    )
    return {item.name: item for item in items}[name]
