"""The configuration: one frozen section per stage, unknown keys refused with the nearest valid key.

Each default carries its origin: "P" is the SnapFusion paper (arXiv 2306.00980v3), "ours" means the paper
gives none. What a section names in `volatile` changes no result, so that it is in no cache key (artifacts_schema.base).
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from artifacts_schema.base import Frozen

_MOST = 10**9  # every number has a range: one that was mistyped is told of before anything runs
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=_MOST)]
NotNegative = Annotated[float, Field(ge=0.0, le=_MOST)]
Decibel = Annotated[float, Field(ge=0.0, le=200.0)]  # float32 itself has some 140
Count = Annotated[int, Field(ge=1, le=_MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=_MOST)]
GuidanceScale = Annotated[float, Field(ge=1.0, le=100.0)]  # 1: none
Weight = Annotated[float, Field(ge=0.0, le=100.0)]  # of a term in a loss
Device = Literal["auto", "cpu", "cuda"]

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


class RunConfig(Frozen):
    """What names and seeds a run."""

    name: str = "openmoji"
    seed: CountOrZero = 0
    smoke: bool = False  # labels every page "smoke": a check of the machinery, not a result


class ComputeConfig(Frozen):
    """Where the stages run."""

    device: Device = "auto"
    threads: CountOrZero = 0  # 0: the cores shared out over the tasks at once
    deterministic: bool = True  # torch deterministic algorithms
    sigterm_grace_s: Positive = 10.0  # time to write a checkpoint after SIGTERM
    price_per_hour: NotNegative = 0.0  # of one machine, in any currency; 0: no cost shown


class StoreConfig(Frozen):
    """The content-addressed store and the stage cache in it."""

    root: str = ".snapfusion/store"  # relative to the project root, or s3://bucket/prefix
    cache: bool = True  # reuse finished stages with equal inputs
    local: str = (
        ".snapfusion/cache"  # S3 only: downloaded objects, scratch files and checkpoints of this machine
    )
    endpoint: str | None = None  # S3 only; None: AWS_ENDPOINT_URL_S3, else Amazon's
    encryption: Literal["none", "AES256", "aws:kms"] = (
        "none"  # S3 only, at the server; none: the bucket's default
    )
    kms_key: str | None = None  # S3 only, with aws:kms; None: the account's own
    timeout_s: Positive = 60.0  # S3 only: longest silence of the server
    attempts: Count = 10  # S3 only: of one request, with growing pauses

    @model_validator(mode="after")
    def _check(self) -> "StoreConfig":
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/@\s?#]+/?", self.endpoint):
            raise ValueError("endpoint must be http(s)://host[:port], without user, password or path")
        if self.kms_key is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key needs encryption = 'aws:kms'")
        return self


class BaseConfig(Frozen):
    """The model that is made small."""

    # Places; what lies there counts.
    volatile: ClassVar[frozenset[str]] = frozenset({"path", "velocity_warm_start", "robust_warm_start"})

    path: str = "assets/base"  # diffusers folder; "micro" builds a random-weight one for tests
    warm_start: bool = True  # start velocity_finetuning and robust_training from the shipped weights
    velocity_warm_start: str = "assets/warm_starts/velocity"
    robust_warm_start: str = "assets/warm_starts/robust"


class DataConfig(Frozen):
    """Captioned pictures."""

    volatile: ClassVar[frozenset[str]] = frozenset({"shards"})  # places; what lies there counts

    source: Literal["openmoji", "webdataset"] = "openmoji"
    shards: tuple[str, ...] = ()  # tar files or brace patterns; webdataset only
    image_size: Count | None = None  # None: the base's own
    limit: Count | None = None  # at most so many captions per split
    variants: Count = (
        1  # openmoji only: drawings of a caption, moved, tilted, on pale backgrounds; 1: as it is
    )
    max_skipped_fraction: Fraction = 0.01  # corrupt pictures and empty captions tolerated
    max_image_pixels: Count = 64_000_000  # larger pictures are refused as decompression bombs

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source != "openmoji" and self.variants != 1:
            raise ValueError(
                f"variants are drawings of openmoji; expected 1 with source '{self.source}', found {self.variants}"
            )
        return self


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
    latency_budget: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = (
        0.5  # of the base UNet's table latency, ours
    )
    rounds: Count = 3
    actions_per_round: Count = 6  # P: several per evolve step; 0.5 takes 11 of the embedded base
    probe_captions: Count = 16  # P: 2,000
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


class ReportConfig(Frozen):
    """`report`."""

    compare_to: tuple[str, ...] = ()  # run ids whose reports are set beside this one
    output: str = (
        ".snapfusion/runs"  # where bundle, report and pictures are placed, relative to the project root
    )


class SnapFusionConfig(Frozen):
    """The whole configuration; a section per stage, named as the stage."""

    run: RunConfig = RunConfig()
    compute: ComputeConfig = ComputeConfig()
    store: StoreConfig = StoreConfig()
    base: BaseConfig = BaseConfig()
    data: DataConfig = DataConfig()
    latency_profile: LatencyProfileConfig = LatencyProfileConfig()
    velocity_finetuning: VelocityFinetuningConfig = VelocityFinetuningConfig()
    robust_training: RobustTrainingConfig = RobustTrainingConfig()
    architecture_evolution: ArchitectureEvolutionConfig = ArchitectureEvolutionConfig()
    step_distillation: StepDistillationConfig = StepDistillationConfig()
    teacher_16: DistillationStageConfig = DistillationStageConfig()
    student_16: Student16Config = Student16Config()
    student_8: DistillationStageConfig = DistillationStageConfig()
    decoder_distillation: DecoderDistillationConfig = DecoderDistillationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    coreml_export: CoremlExportConfig = CoremlExportConfig()
    coreml_compression: CoremlCompressionConfig = CoremlCompressionConfig()
    report: ReportConfig = ReportConfig()


class InvalidConfig(ValueError):
    """A configuration was refused; the message has one line per problem."""


def load_config(text: str) -> SnapFusionConfig:
    """Read TOML text. Raises InvalidConfig naming each bad key, its range and the nearest valid key."""
    try:
        payload = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"the configuration is not valid TOML: {error}") from error
    return parse_config(payload)


def parse_config(payload: Mapping[str, Any]) -> SnapFusionConfig:
    """Validate a parsed configuration; see `load_config`."""
    try:
        return SnapFusionConfig.model_validate(payload)
    except ValidationError as error:
        lines = [_describe(item) for item in error.errors()]
        raise InvalidConfig("the configuration was refused:\n  " + "\n  ".join(lines)) from error


def load_config_file(path: Path) -> SnapFusionConfig:
    """Read a TOML file; see `load_config`."""
    return load_config(path.read_text(encoding="utf-8"))


def _describe(item: Any) -> str:
    """One line for one pydantic error: dotted key, what is wrong, what was found, nearest valid key."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(location)}"
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    if location[0] == "store":  # somebody may have put a password into an address: it must not reach a log
        return f"'{key}' {message}"
    return f"'{key}' {message}, found {item['input']!r}"


def _nearest(location: list[str]) -> str:
    """Suggestion for an unknown key: the closest one in its section, else wherever in the configuration it exists."""
    section: Any = SnapFusionConfig
    for part in location[:-1]:
        section = _section_of(section, part)
        if section is None:
            return ""
    valid = list(section.model_fields)
    close = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
    prefix = ".".join(location[:-1])
    if close:
        return f"; did you mean '{prefix + '.' if prefix else ''}{close[0]}'?"
    return f"; valid keys here: {', '.join(valid)}"


def _section_of(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = section.model_fields.get(name)
    if field is None:
        return None
    candidates = (field.annotation, *get_args(field.annotation))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
