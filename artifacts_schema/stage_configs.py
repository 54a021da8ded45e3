"""The sections of the configuration that stages read.

Each default carries its origin: "P" is the SnapFusion paper (arXiv 2306.00980v3), "ours" means the paper gives none.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from artifacts_schema.architecture import GivenArchitecture
from artifacts_schema.base import Frozen
from artifacts_schema.ranges import (
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    Positive,
    Weight,
    setting,
)


class TrainingConfig(Frozen):
    """One training. The same section drives every stage that trains."""

    volatile: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_interval_s", "log_interval", "gradient_checkpointing", "ema_on_host"}
    )

    iterations: CountOrZero = setting(100, "optimizer steps; 0 hands the start on untrained")
    batch_size: Count = setting(
        32, "pictures of a micro-batch", unit="pictures", origin="ours; P: 2,048 in all"
    )
    accumulation: Count = setting(1, "micro-batches of an optimizer step")
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = setting(1e-4, "highest rate of AdamW")
    warmup_iterations: CountOrZero = setting(10, "over which the rate rises from 0")
    schedule: Literal["constant", "cosine"] = setting("cosine", "how the rate goes on after the warm-up")
    cosine_iterations: Count | None = setting(
        None, "the last ones, which the cosine takes; unset: all after the warm-up"
    )
    final_learning_rate_fraction: Fraction = setting(
        0.05, "where the cosine ends, as a share of learning_rate"
    )
    weight_decay: NotNegative = setting(0.01, "of AdamW", origin="P section 5")
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = setting(
        0.999, "decay of AdamW's second moment", origin="AdamW's own"
    )
    gradient_clip: Positive = setting(1.0, "largest norm of the gradient", origin="BK-SDM, diffusers")
    ema_decay: Fraction = setting(0.999, "upper bound of the moving average's decay, min(this, (1+n)/(10+n))")
    held_out_checks: Annotated[int, Field(ge=1, le=1000)] = setting(
        2, "after the start's own, the last at the end; the best state is handed on"
    )
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "of the forward pass, by autocast; weights and optimizer are fp32"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of every block for the backward pass and compute the rest again: less memory, about "
        "a third more time, the same result. Origin: ours.",
    )
    compile: bool = Field(
        False,
        description="Have torch.compile fuse the operations of the trained network and of its teacher: minutes of compiling for "
        "every shape of a batch, then measured 10 % less time a step on a CPU, so that it pays from some thousand iterations "
        "on. Not where units are skipped. Origin: ours.",
    )
    ema_on_host: bool = Field(
        False,
        description="Keep the moving average in the computer's own memory: 4 bytes a parameter less on the GPU, for a copy of "
        "the weights every step. Changes nothing on a CPU. Origin: ours.",
    )
    checkpoint_interval_s: Positive = setting(60.0, "time between checkpoints", unit="s")
    log_interval: Count = setting(10, "iterations between two lines of the log")

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

    backend: Literal["torch-cpu", "torch-cuda", "macs", "ort-cpu", "device"] = setting(
        "torch-cpu",
        "what times the blocks; macs counts instead; ort-cpu and device are imported",
        origin="ours; P: iPhone 14 Pro",
    )
    table: str | None = setting(
        None, "measured elsewhere, of that backend: a table, or a device's latency.json"
    )
    batch_size: Count = setting(
        2, "latents at once: a guided step evaluates both branches", origin="P Table 5"
    )
    repeats: Count = setting(30, "timed calls of every block")
    warmup: Count = setting(5, "calls before them that do not count")
    max_unexplained: Positive = setting(0.25, "|sum of parts - whole| / whole that is tolerated")

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
    base_velocity_weight: Weight = setting(
        0.1, "of the distance to the base's own v in the loss, docs/method.md"
    )
    base_velocity_min_alpha: Fraction = setting(
        0.3, "below, that term is off: the base's eps error would become the target"
    )
    caption_dropout: Fraction = setting(
        0.1, "share of empty captions: keeps the unconditional branch", origin="ours, as in SD's training"
    )


def _not_compiled(training: TrainingConfig, drop_probability: float) -> None:
    if training.compile and drop_probability > 0.0:
        raise ValueError(
            "training.compile must be false where units are skipped, found true: every choice of them would be compiled anew"
        )


class RobustTrainingConfig(Frozen):
    """`robust_training` (P eq. 5)."""

    training: TrainingConfig = TrainingConfig()
    drop_probability: Fraction = setting(0.1, "of every unit, in every iteration after the ramp")
    ramp_fraction: Fraction = setting(0.5, "share of the training over which the probability rises from 0")
    caption_dropout: Fraction = setting(0.1, "share of empty captions: keeps the unconditional branch")

    @model_validator(mode="after")
    def _check(self) -> "RobustTrainingConfig":
        _not_compiled(self.training, self.drop_probability)
        return self


class ArchitectureEvolutionConfig(Frozen):
    """`architecture_evolution` (P Algorithm 1)."""

    architecture: str | GivenArchitecture | None = Field(
        None,
        description="None: searched, by all that follows. `snapfusion-sd15`: the paper's final UNet (P Table 3), for a base of "
        "Stable Diffusion 1.5's topology. A path that ends in .json, relative to the project root: an ArchitectureSpec, as a "
        "record, in a saved EvolvedUNet's config.json or in an evolution's record; it is read when the run starts. One that "
        "is given is trained for `training.iterations` and nothing is probed: of the rest only `training` and "
        "`caption_dropout` count. Origin: ours.",
    )
    training: TrainingConfig = TrainingConfig()  # iterations in all, shared out over the rounds
    latency_budget: Annotated[float, Field(gt=0.0, le=1.0)] = setting(
        0.5, "of the evolved UNet, as a share of the base UNet's latency"
    )
    decide_by: Literal["table", "macs"] = setting(
        "table", "latency_profile's table, or counted MACs: the same on every machine"
    )
    rounds: Count = setting(3, "of scoring, removing and training")
    actions_per_round: Count = setting(
        6, "at most; 0.5 takes 11 of the embedded base", origin="ours; P: several"
    )
    captions_per_batch: Annotated[int, Field(ge=2, le=10**9)] = setting(
        8, "every change is probed with one batch ...", unit="captions"
    )
    most_captions: Annotated[int, Field(ge=2, le=10**9)] = setting(
        32,
        "... and with more, up to this, while a choice hangs on it",
        unit="captions",
        origin="ours; P: 2,000",
    )
    confidence: Annotated[float, Field(ge=0.0, le=6.0, allow_inf_nan=False)] = setting(
        2.0, "of the bounds that decide", unit="standard errors"
    )
    probe_steps: Count = setting(8, "sampling steps of a probe's pictures", origin="ours; P: 50")
    probe_guidance_scale: Positive = setting(
        5.0, "guidance scale of a probe's pictures", origin="ours; P: 7.5"
    )
    drop_probability: Fraction = setting(
        0.1, "in the training between rounds; 0 in the last, after which nothing is removed"
    )
    caption_dropout: Fraction = setting(0.1, "share of empty captions: keeps the unconditional branch")

    @model_validator(mode="after")
    def _check(self) -> "ArchitectureEvolutionConfig":
        if self.architecture is None:
            _not_compiled(self.training, self.drop_probability)
        return self

    def meaning_of_stage(self) -> dict[str, Any]:
        """What the stage depends on: a search on all but `architecture`, one that is given on little else."""
        if self.architecture is None:
            return self.meaning(without={"architecture"})
        given = self.architecture
        found = {"training": self.training.meaning(), "caption_dropout": self.caption_dropout}
        return found | {"architecture": given if isinstance(given, str) else given.meaning()}

    @field_validator("architecture")
    @classmethod
    def _named_or_a_file(cls, value: str | GivenArchitecture | None) -> str | GivenArchitecture | None:
        if isinstance(value, str) and value != "snapfusion-sd15" and not value.endswith(".json"):
            raise ValueError("must be 'snapfusion-sd15' or the path of a .json file with an architecture")
        return value
