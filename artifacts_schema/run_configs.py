"""The sections of the configuration that a run as a whole reads: name, machine, store, base, data, report."""

import re
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.filters import Filter
from artifacts_schema.parts import SkippableStage, check_parts
from artifacts_schema.ranges import Count, CountOrZero, Device, Fraction, NotNegative, Positive, setting


class RunConfig(Frozen):
    """What names and seeds a run."""

    name: str = setting("openmoji", "what the run is called in reports and pages")
    seed: CountOrZero = setting(0, "every random draw of the run follows from it")
    smoke: bool = setting(False, 'labels every page "smoke": a check of the machinery, not a result')
    rehearsal: bool = Field(
        False,
        description="Labels every page 'rehearsal'. Set by `snapfusion rehearse`, which also shortens every "
        "stage. Origin: ours.",
    )
    skip: tuple[SkippableStage, ...] = Field(
        (),
        description="Stages that train and are not asked for. Each leaves a record that says so and hands on the weights "
        "that it would have started from (docs/parts.md). Origin: ours.",
    )

    @field_validator("skip")
    @classmethod
    def _fits_together(cls, skip: tuple[SkippableStage, ...]) -> tuple[SkippableStage, ...]:
        check_parts(skip)
        return tuple(sorted(set(skip)))


class ComputeConfig(Frozen):
    """Where the stages run."""

    device: Device = setting("auto", "where the stages compute; auto: a GPU if there is one")
    threads: CountOrZero = setting(
        0, "of torch in each task; 0: the cores shared out over the tasks at once", unit="threads"
    )
    processes: Annotated[int, Field(ge=1, le=64)] = setting(
        1,
        "that share one training, each with a GPU of its own; batch_size must be divisible",
        unit="processes",
    )
    rank_timeout_s: Positive = setting(
        1800.0,
        "of silence until such a process is given up; one of them draws and measures alone for minutes",
        unit="s",
    )
    deterministic: bool = setting(
        True, "torch's deterministic algorithms: on a CPU a resumed training is bit-equal"
    )
    sigterm_grace_s: Positive = setting(10.0, "time to write a checkpoint after SIGTERM", unit="s")
    price_per_hour: NotNegative = setting(
        0.0, "of one machine, in any currency, for the estimate of cost; 0: none shown", unit="1/h"
    )
    prices: dict[str, NotNegative] = setting(
        {}, "the same for stages that run on other machines, by stage", unit="1/h"
    )

    def price_of(self, stage: str) -> float:
        """Of an hour of this stage's machine."""
        return self.prices.get(stage, self.price_per_hour)


class StoreConfig(Frozen):
    """The content-addressed store and the stage cache in it."""

    root: str = setting(
        ".snapfusion/store",
        "where everything is kept: a folder, from the project root, or s3://bucket/prefix",
    )
    cache: bool = setting(True, "reuse finished stages with equal inputs")
    local: str = setting(
        ".snapfusion/cache", "S3 only: downloaded objects, scratch files and checkpoints of this machine"
    )
    endpoint: str | None = setting(
        None, "S3 only: address of the server; unset: AWS_ENDPOINT_URL_S3, else Amazon's"
    )
    encryption: Literal["none", "AES256", "aws:kms"] = setting(
        "none", "S3 only: at the server; none: the bucket's default"
    )
    kms_key: str | None = setting(None, "S3 only: key for aws:kms; unset: the account's own")
    timeout_s: Positive = setting(60.0, "S3 only: longest silence of the server", unit="s")
    attempts: Count = setting(10, "S3 only: of one request, with growing pauses")
    cache_gib: Positive = setting(
        200.0, "S3 only: most that encoded shards of data take in store.local", unit="GiB"
    )

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

    path: str = setting(
        "assets/base", 'the base, a diffusers folder; "micro": a random-weight model for tests'
    )
    warm_start: bool = setting(True, "start velocity_finetuning and robust_training from the shipped weights")
    velocity_warm_start: str = setting(
        "assets/warm_starts/velocity", "folder of the shipped v-prediction UNet"
    )
    robust_warm_start: str = setting(
        "assets/warm_starts/robust", "folder of the shipped UNet that bears skipped blocks"
    )


_OF_SHARDS = ("caption_field", "filters", "crop", "held_out_fraction", "shuffle_shards")


class DataConfig(Frozen):
    """Captioned pictures."""

    volatile: ClassVar[frozenset[str]] = frozenset(
        {"shards", "held_out_from"}
    )  # places; what lies there counts

    source: Literal["openmoji", "webdataset"] = setting(
        "openmoji", "openmoji: the included pictures; webdataset: your shards"
    )
    shards: tuple[str, ...] = setting(
        (), "tar files such as data/{00000..00099}.tar: paths, s3:// or https://; webdataset only"
    )
    held_out_from: tuple[str, ...] = setting(
        (), "those of the shards that validation and test come from; none: all"
    )
    image_size: Count | None = setting(None, "side of the pictures; unset: the base's own", unit="pixels")
    limit: Count | None = setting(None, "at most so many captions of each split; unset: all", unit="captions")
    variants: Count = setting(
        1, "openmoji only: drawings of a caption, moved, tilted, on pale backgrounds; 1: as it is"
    )
    max_skipped_fraction: Fraction = setting(
        0.01, "share of corrupt pictures and empty captions that is tolerated"
    )
    max_image_pixels: Count = setting(
        64_000_000, "larger pictures are refused as decompression bombs", unit="pixels"
    )
    caption_field: str | None = setting(
        None, "webdataset only: field of the .json that is the caption; unset: the .txt", min_length=1
    )
    filters: tuple[str, ...] = setting(
        (),
        "webdataset only: what pictures must satisfy, such as 'width >= 512', 'aspect <= 2' or, of the .json, "
        "'aesthetic_score > 5.5', 'LANGUAGE == en'",
    )
    crop: Literal["center", "pad"] = setting(
        "center", "webdataset only: the middle square, or the whole picture on white"
    )
    held_out_fraction: Annotated[float, Field(gt=0.0, le=0.25)] = setting(
        0.05, "webdataset only: share of the captions in validation, and in test"
    )
    shuffle_shards: Count = setting(
        8, "webdataset only: shards whose pictures are shuffled among each other", unit="shards"
    )

    def meaning(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """The included pictures know nothing of what shards alone need."""
        own = _OF_SHARDS if self.source == "openmoji" else ()
        return super().meaning(without={*without, *own})

    @field_validator("filters")
    @classmethod
    def _filters_can_be_read(cls, filters: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(Filter.parse(text).text for text in filters)

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source == "openmoji" and self.held_out_from:
            raise ValueError("held_out_from names shards of source 'webdataset'")
        fields = type(self).model_fields
        set_for_shards = [name for name in _OF_SHARDS if getattr(self, name) != fields[name].default]
        if self.source == "openmoji" and set_for_shards:
            raise ValueError(f"{set_for_shards[0]} is of shards; expected source 'webdataset' with it")
        if self.source != "openmoji" and self.variants != 1:
            raise ValueError(
                f"variants are drawings of openmoji; expected 1 with source '{self.source}', found {self.variants}"
            )
        return self


class ReportConfig(Frozen):
    """`report`."""

    compare_to: tuple[str, ...] = setting((), "run ids whose reports are set beside this one")
    output: str = setting(
        ".snapfusion/runs", "where bundle, report and pictures are placed, from the project root"
    )
