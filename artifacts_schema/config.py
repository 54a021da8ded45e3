"""The configuration: one frozen section per stage, unknown keys refused with the nearest valid key.

Each default carries its origin: "P" is the SnapFusion paper (arXiv 2306.00980v3), "ours" means the paper
gives none. What a section names in `volatile` changes no result, so that it is in no cache key (artifacts_schema.base).
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.operating import NotifyConfig, PromotionConfig, ScheduleConfig
from artifacts_schema.ranges import Count, CountOrZero, Device, Fraction, NotNegative, Positive
from artifacts_schema.resources import ResourcesConfig
from artifacts_schema.stage_configs import (
    ArchitectureEvolutionConfig,
    CoremlCompressionConfig,
    CoremlExportConfig,
    DecoderDistillationConfig,
    DistillationStageConfig,
    EvaluationConfig,
    LatencyProfileConfig,
    RobustTrainingConfig,
    StepDistillationConfig,
    Student16Config,
    VelocityFinetuningConfig,
)

_OTHER_STAGES = (
    "start",
    "real_pictures",
    "guidance_selection",
    "bundle_drawing",
)  # without a section of their own
SHIPPED = "student_8_small_decoder"
"""The variant that ships."""


class RunConfig(Frozen):
    """What names and seeds a run."""

    name: str = "openmoji"
    seed: CountOrZero = 0
    smoke: bool = False  # labels every page "smoke": a check of the machinery, not a result


class ComputeConfig(Frozen):
    """Where the stages run."""

    device: Device = "auto"
    threads: CountOrZero = 0  # 0: the cores shared out over the tasks at once
    processes: Annotated[int, Field(ge=1, le=64)] = 1  # of one training, each with a GPU of its own
    deterministic: bool = True  # torch deterministic algorithms
    sigterm_grace_s: Positive = 10.0  # time to write a checkpoint after SIGTERM
    price_per_hour: NotNegative = 0.0  # of one machine, in any currency; 0: no cost shown
    prices: dict[str, NotNegative] = {}  # the same for stages that run on other machines, by stage

    def price_of(self, stage: str) -> float:
        """Of an hour of this stage's machine."""
        return self.prices.get(stage, self.price_per_hour)


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
    held_out_from: tuple[str, ...] = ()  # those of them that validation and test come from; none: all
    image_size: Count | None = None  # None: the base's own
    limit: Count | None = None  # at most so many captions per split
    variants: Count = (
        1  # openmoji only: drawings of a caption, moved, tilted, on pale backgrounds; 1: as it is
    )
    max_skipped_fraction: Fraction = 0.01  # corrupt pictures and empty captions tolerated
    max_image_pixels: Count = 64_000_000  # larger pictures are refused as decompression bombs

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source == "openmoji" and self.held_out_from:
            raise ValueError("held_out_from names shards of source 'webdataset'")
        if self.source != "openmoji" and self.variants != 1:
            raise ValueError(
                f"variants are drawings of openmoji; expected 1 with source '{self.source}', found {self.variants}"
            )
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
    promotion: PromotionConfig = PromotionConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    notify: NotifyConfig = NotifyConfig()
    resources: dict[str, ResourcesConfig] = {}  # by step of the flow, and "default"; see flows/remote.py

    @model_validator(mode="after")
    def _prices_are_of_stages(self) -> "SnapFusionConfig":
        stages = {*type(self).model_fields, *_OTHER_STAGES}
        for name in sorted(self.compute.prices.keys() - stages):
            close = difflib.get_close_matches(name, stages, n=1)
            raise ValueError(
                f"compute.prices names no stage: '{name}'"
                + (f"; did you mean '{close[0]}'?" if close else "")
            )
        return self

    @model_validator(mode="after")
    def _processes_share_batches(self) -> "SnapFusionConfig":
        for name in type(self).model_fields:
            training = getattr(getattr(self, name), "training", None)
            if training is not None and (problem := training.why_not_shared_by(self.compute.processes)):
                raise ValueError(f"{name}.training.{problem}")
        return self

    @model_validator(mode="after")
    def _promotion_can_compare(self) -> "SnapFusionConfig":
        evaluation = self.evaluation
        if self.promotion.enabled and SHIPPED not in evaluation.variants:
            raise ValueError(f"promotion.enabled needs {SHIPPED} among evaluation.variants: it is what ships")
        if (
            self.promotion.enabled
            and evaluation.split != "validation"
            and len(evaluation.guidance_scales) == 1
        ):
            raise ValueError(
                "promotion.enabled compares with the champion on the validation protocol, and nothing is drawn there: set "
                "evaluation.split = 'validation', or several evaluation.guidance_scales to choose from"
            )
        return self


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
    if not location:  # sections that do not fit together
        return message
    if location[0] == "store":  # somebody may have put a password into an address: it must not reach a log
        return f"'{key}' {message}"
    return f"'{key}' {message}, found {item['input']!r}"


def _nearest(location: list[str]) -> str:
    """Suggestion for an unknown key: the closest one in its section, else wherever in the configuration it exists."""
    section: Any = SnapFusionConfig
    for position, part in enumerate(location[:-1]):
        if position == 1 and location[0] == "resources":
            continue  # the name of a step, below which lies the table that is already found
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
