"""The sections of the configuration that stages read.

Each default carries its origin: "P" is the SnapFusion paper (arXiv 2306.00980v3), "ours" means the paper gives none.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.ranges import (
    Count,
    CountOrZero,
    Decibel,
    Fraction,
    GuidanceScale,
    NotNegative,
    Positive,
    Weight,
)

KEPT_PICTURES = 64
"""So many pictures of every evaluated point are kept, for the report; all others are only measured."""


class TrainingConfig(Frozen):
    """One training. The same section drives every stage that trains."""

    volatile: ClassVar[frozenset[str]] = frozenset({"checkpoint_interval_s", "log_interval"})

    iterations: CountOrZero = 100  # ours
    batch_size: Count = 32  # ours; P: 2,048
    accumulation: Count = 1  # micro-batches per optimizer step
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4  # ours
    warmup_iterations: CountOrZero = 10  # ours
    schedule: Literal["constant", "cosine"] = "cosine"  # ours
    cosine_iterations: Count | None = (
        None  # the last ones, which the cosine takes; None: all after the warm-up
    )
    final_learning_rate_fraction: Fraction = 0.05  # where the cosine ends, ours
    weight_decay: NotNegative = 0.01  # P section 5
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999  # AdamW's own default
    gradient_clip: Positive = 1.0  # BK-SDM, diffusers
    ema_decay: Fraction = 0.999  # upper bound of min(decay, (1+n)/(10+n)), ours
    held_out_checks: Annotated[int, Field(ge=1, le=1000)] = 2  # after the start's, the last at the end
    precision: Literal["fp32", "bf16"] = "fp32"  # autocast of the forward pass
    checkpoint_interval_s: Positive = 60.0
    log_interval: Count = 10

    def why_not_shared_by(self, processes: int) -> str:
        """What is wrong with a batch of which every process must take as many pictures; empty if nothing is."""
        below = self.batch_size // processes * processes
        if below == self.batch_size:
            return ""
        nearest = " or ".join(str(size) for size in (below, below + processes) if size)
        return (
            f"batch_size must be divisible by compute.processes = {processes}, found {self.batch_size}; "
            f"the nearest: {nearest}"
        )


class LatencyProfileConfig(Frozen):
    """`latency_profile`."""

    volatile: ClassVar[frozenset[str]] = frozenset({"table"})  # a place; what lies there counts

    backend: Literal["torch-cpu", "torch-cuda", "macs", "ort-cpu", "device"] = "torch-cpu"
    table: str | None = None  # measured elsewhere, of that backend: a table, or a device's latency.json
    batch_size: Count = 2  # a guided step evaluates both branches at once
    repeats: Count = 30
    warmup: Count = 5
    max_unexplained: Positive = 0.25  # |sum of parts - whole| / whole that is tolerated

    @model_validator(mode="after")
    def _check(self) -> "LatencyProfileConfig":
        if self.table is None and self.backend in ("ort-cpu", "device"):
            raise ValueError(
                f"table must name a JSON file when backend is '{self.backend}'; it is not measured here"
            )
        return self


class VelocityFinetuningConfig(Frozen):
    """`velocity_finetuning`."""

    training: TrainingConfig = TrainingConfig()
    base_velocity_weight: Weight = 0.1  # ours, docs/method.md
    base_velocity_min_alpha: Fraction = 0.3  # below, the base's eps error would become the target
    caption_dropout: Fraction = 0.1  # ours: keeps the unconditional branch, as in SD's own training


class RobustTrainingConfig(Frozen):
    """`robust_training` (P eq. 5)."""

    training: TrainingConfig = TrainingConfig()
    drop_probability: Fraction = 0.1  # ours: same for all units
    ramp_fraction: Fraction = 0.5  # share of the training over which the probability rises from 0
    caption_dropout: Fraction = 0.1  # ours: keeps the unconditional branch


class ArchitectureEvolutionConfig(Frozen):
    """`architecture_evolution` (P Algorithm 1)."""

    training: TrainingConfig = TrainingConfig()  # iterations in all, shared out over the rounds
    latency_budget: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # of the base UNet's latency, ours
    decide_by: Literal["table", "macs"] = (
        "table"  # latency_profile's table, or counted MACs: the same on every machine
    )
    rounds: Count = 3
    actions_per_round: Count = 6  # P: several per evolve step; 0.5 takes 11 of the embedded base
    captions_per_batch: Annotated[int, Field(ge=2, le=10**9)] = 8  # every change is probed with one batch ...
    most_captions: Annotated[int, Field(ge=2, le=10**9)] = (
        32  # ... and with more, up to this, while a choice hangs on it; P: 2,000
    )
    confidence: Annotated[float, Field(ge=0.0, le=6.0, allow_inf_nan=False)] = (
        2.0  # standard errors of a bound, ours
    )
    probe_steps: Count = 8  # P: 50
    probe_guidance_scale: Positive = 5.0  # P: 7.5
    drop_probability: Fraction = 0.1  # between rounds; 0 in the last, after which nothing is removed any more
    caption_dropout: Fraction = 0.1  # ours: keeps the unconditional branch


class StepDistillationConfig(Frozen):
    """What teacher_16, student_16 and student_8 share. The stages keep their names whatever the step counts are."""

    intermediate_steps: Count = 16  # P; the first teachers run on the grid of twice as many
    final_steps: Count = 8  # P
    cfg_probability: Fraction = 0.1  # P Fig. 7
    cfg_range: tuple[GuidanceScale, GuidanceScale] = (2.0, 14.0)  # P section 4
    gamma: Weight = 0.2  # P section 5.2, dynamic
    caption_dropout: Fraction = 0.1  # ours: in unguided iterations, keeps the unconditional branch
    validation_captions: Annotated[int, Field(ge=1, le=10_000)] = 32  # of every held-out check, ours
    validation_guidance_scale: GuidanceScale = 3.0  # ours

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

    teacher: Literal["architecture_evolution", "velocity_finetuning"] = (
        "architecture_evolution"  # P section 4
    )


class DecoderDistillationConfig(Frozen):
    """`decoder_distillation`."""

    training: TrainingConfig = TrainingConfig()
    pool_size: Annotated[int, Field(ge=2, le=10**8)] = 128  # latents generated by the base
    ddim_steps: Annotated[int, Field(ge=1, le=1000)] = 50  # P B.2
    guidance_scale: GuidanceScale = 3.0  # ours: paper gives none
    width_fraction: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.5  # P section 3.2


class EvaluationConfig(Frozen):
    """`guidance_selection`, `evaluation` and `real_pictures`.

    The evaluators count by what is in their folders, the steps by variant.
    """

    volatile: ClassVar[frozenset[str]] = frozenset(
        {"signal_clip", "measure_clip", "inception", "variants", "base_steps", "grid_pictures"}
    )

    signal_clip: str = "assets/evaluators/openclip_signal"  # trained with; evolution and guidance choice
    measure_clip: str = "assets/evaluators/openclip_measure"  # only measures
    features: Literal["efficientnet_lite0", "inception"] = "efficientnet_lite0"
    inception: str | None = None  # the file of features = "inception", NVIDIA's inception-2015-12-05.pt
    variants: tuple[str, ...] = (
        "base_50",
        "base_8",
        "base_8_dpm",
        "teacher_16",
        "student_16",
        "student_8",
        "student_8_small_decoder",
    )
    guidance_scales: tuple[Positive, ...] = Field(
        (3.0,), min_length=1
    )  # one is chosen per variant, on validation
    validation_pictures: Count = 64  # per variant and guidance scale, where there is a choice
    pictures: Count = 64  # per variant
    base_steps: Count = 50  # P
    split: Literal["validation", "test"] = "test"
    grid_pictures: Annotated[int, Field(ge=1, le=KEPT_PICTURES)] = 16

    @model_validator(mode="after")
    def _inception_has_a_file(self) -> Self:
        if self.features == "inception" and not self.inception:
            raise ValueError('features = "inception" needs inception, the path of inception-2015-12-05.pt')
        return self


class ProgramCheckConfig(Frozen):
    """What a saved package must reach beside its torch model, and on how much it is tried."""

    volatile: ClassVar[frozenset[str]] = frozenset({"pictures", "min_image_psnr_db"})  # of the bundle

    captions: Count = 4  # of the validation split, with their latents, ours
    timesteps: tuple[CountOrZero, ...] = Field(
        (999, 499, 124), min_length=1
    )  # ours: first, middle and last of the 8-step grid
    min_exact_db: Decibel = 65.0  # ours: measured 75 to 110 dB, a fault of the conversion gives less than 50
    min_rounded_db: Decibel = 50.0  # ours; Apple's own converter asks for 35 dB
    max_loss_db: Decibel = 3.0  # ours: against torch with float16 weights and results
    pictures: Count = 4  # drawn with the whole bundle
    min_image_psnr_db: Decibel = 30.0  # ours: of the worst picture against torch's


class CoremlExportConfig(Frozen):
    """`coreml_export`. What only the bundle has (guidance, pictures) is volatile here: its stages name it themselves."""

    volatile: ClassVar[frozenset[str]] = frozenset({"components", "guidance_scale"})

    minimum_deployment_target: Literal["iOS17", "iOS18"] = "iOS17"
    attention: Literal["original", "split_einsum"] = "original"
    batch_size: Literal[1, 2] = 2  # 2: guided in one call
    chunked_unet: bool = False  # in two packages: what the Neural Engine loads of large models is limited
    components: tuple[
        Literal["text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker"], ...
    ] = ("text_encoder", "unet", "vae_decoder")
    guidance_scale: Positive = 3.0  # written into the manifest as the recommended one
    program_check: ProgramCheckConfig = ProgramCheckConfig()

    def meaning_for(self, component: str) -> dict[str, Any]:
        """What the export of one component depends on: some settings are of the UNet alone."""
        if component == "unet":
            return self.meaning()
        check = self.program_check.meaning(without={"timesteps"})
        return self.meaning(without={"attention", "batch_size", "chunked_unet"}) | {"program_check": check}


class CoremlCompressionConfig(Frozen):
    """`coreml_compression`. The pictures are those of `coreml_export.program_check.pictures` captions."""

    schemes: tuple[Literal["palette_8", "palette_6", "palette_4", "linear_8", "mixed"], ...] = (
        "palette_8",
        "palette_6",
        "palette_4",
    )  # ours: of each component; none: nothing is compressed. "mixed" needs "palette_6" before it
    min_image_psnr_db: Decibel = 30.0  # ours: of the worst picture against torch's, as for the export
    max_clip_drop: Annotated[float, Field(ge=0.0, le=2.0)] = 0.01  # ours: mean cosine of the signal evaluator
    smallest_weight: Count = 2048  # numbers; smaller weights stay as they are

    @model_validator(mode="after")
    def _mixed_has_a_measure(self) -> Self:
        if "mixed" in self.schemes and "palette_6" not in self.schemes[: self.schemes.index("mixed")]:
            raise ValueError('schemes: "mixed" is held against "palette_6", which must come before it')
        return self
