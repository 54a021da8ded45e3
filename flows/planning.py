"""What a run takes on some hardware, stage by stage, before any data are touched: `snapfusion plan`.

Time is that of `steps.latency.estimates`, with costs that are measured here or counted from shapes; memory that of
`steps.latency.fit`. Inputs that are not there yet are taken to be as large as Stable Diffusion's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from braceexpand import braceexpand

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import variants_of
from artifacts_schema.plan import InputName
from artifacts_schema.stage_configs import TrainingConfig
from flows.environment import PROJECT_ROOT
from steps.files.errors import ConfigError
from steps.inputs.folders import MICRO
from steps.latency.bounds import TRAINED, training_of
from steps.latency.hardware import Hardware

_FLOAT = 4
_BF16 = 2
_CHECKPOINT = 5  # weights, two moments, moving average and best state, each as large as the weights
_KEPT = 2  # checkpoints of a training that stay
_IN_A_SHARD = 1000  # pictures, as img2dataset writes them and the presets say
_OPENMOJI = 3953
_ALONE = (
    "start",
    "velocity_finetuning",
    "student_8",
    "student_4",
    "student_2",
)  # nothing else works beside them
# Bytes of what is not at hand: Stable Diffusion 1.5, OpenCLIP's ViT-L/14 and ViT-g/14 in float32, NVIDIA's Inception.
_ASSUMED: Mapping[InputName, int] = {
    "base": 4_265_000_000,
    "signal_clip": 1_711_000_000,
    "measure_clip": 5_467_000_000,
    "inception": 95_607_719,
}


@dataclass(frozen=True)
class PlannedStage:
    """One stage. `steps` and `pictures` of trainings and drawings; `memory_bytes` where it is trained; `cost` where a price is
    known; `storage_bytes` stay in the store, `traffic_bytes` go to and from it when the stage has a machine of its own.
    """

    stage: str
    steps: int | None
    pictures: int | None
    memory_bytes: float | None
    seconds: float
    cost: float | None
    storage_bytes: float
    traffic_bytes: float


@dataclass(frozen=True)
class Plan:
    """A run on some hardware; `refused` says what cannot fit and which settings would, `assumed` what the plan rests on."""

    run: str
    hardware: str
    pictures: int
    bytes_per_picture: float
    stages: tuple[PlannedStage, ...]
    assumed: tuple[str, ...]
    refused: str = ""

    @property
    def seconds(self) -> float:
        """One stage after the other."""
        return sum(item.seconds for item in self.stages)


def planned(
    config: SnapFusionConfig,
    hardware: Hardware | None,
    *,
    pictures: int | None = None,
    price: float | None = None,
) -> Plan:
    """The plan for a line of the table of hardware, or, with None, for this machine, which is measured for it.

    `pictures` stands in for those that the configuration's shards hold, `price` an hour for the configuration's prices.
    """
    from flows.costs import costs_here, machine_here
    from steps.latency.counted import costs_on, counted
    from steps.latency.fit import check_fits

    shapes, assumed = _shapes(config)
    counts = counted(shapes)
    if hardware is None:
        here = costs_here(config, counts)
        costs, together, basis = here.alone, here.together, here.basis
        name, memory, where = machine_here()
    else:
        costs = together = costs_on(hardware, counts)
        basis = hardware.origin
        name, memory, where = hardware.name, hardware.memory_bytes, "the GPU"
    count, said = _pictures(config, pictures)
    found = _Planner(config, (costs, together), counts, count, price).stages(_memory(config, shapes))
    refused = ""
    try:
        check_fits(config, shapes, memory, where=where)
    except ConfigError as error:
        refused = str(error)
    several = f"{config.compute.processes} x " if config.compute.processes > 1 else ""
    return Plan(
        run=config.run.name,
        hardware=f"{several}{name}, {memory / 2**30:.0f} GiB",
        pictures=count,
        bytes_per_picture=_picture_bytes(config, counts),
        stages=found,
        assumed=(*assumed, said, f"speed: {basis}"),
        refused=refused,
    )


def _memory(config: SnapFusionConfig, shapes: Any) -> dict[str, float]:
    from steps.latency.fit import needs

    return {need.stage: need.bytes for need in needs(config, shapes)}


def _shapes(config: SnapFusionConfig) -> tuple[Any, tuple[str, ...]]:
    """What memory and work depend on: of the base where it is, of the micro base, else of Stable Diffusion 1.5."""
    from steps.latency.counted import SD15, shapes_of
    from steps.pretraining.micro import write_micro_base

    folder = PROJECT_ROOT / config.base.path
    if config.base.path == MICRO:
        with TemporaryDirectory() as scratch:
            return shapes_of(write_micro_base(Path(scratch) / "base")), ()
    if folder.is_dir():
        return shapes_of(folder), ()
    return SD15, (f"base: Stable Diffusion 1.5, as {config.base.path} is not here",)


def _pictures(config: SnapFusionConfig, asked: int | None) -> tuple[int, str]:
    """How many pictures are prepared, and where that is from."""
    data = config.data
    if asked is not None:
        return asked, f"pictures: {asked:,}, as asked for"
    if data.source == "openmoji":
        count = min(_OPENMOJI, 4 * data.limit if data.limit else _OPENMOJI) * data.variants
        return count, f"pictures: {count:,}, drawn"
    shards = sum(1 for pattern in data.shards for _ in braceexpand(pattern))  # whether they are there or not
    count = shards * _IN_A_SHARD
    return (
        count,
        f"pictures: {count:,}, as {shards:,} shards of {_IN_A_SHARD:,} hold (--pictures says another number)",
    )


def _picture_bytes(config: SnapFusionConfig, counts: Mapping[str, float]) -> float:
    """Of a prepared picture: moments of its latent and embedding of its caption, and what is measured on has its pixels.

    Included pictures keep float32 and their pixels (docs/adr/0039-streamed-data.md).
    """
    pixels, numbers = 3 * counts["image_size"] ** 2, counts["moments"] + counts["embedding"]
    if config.data.source == "webdataset":
        return _BF16 * numbers + 2 * config.data.held_out_fraction * pixels
    return _FLOAT * numbers + pixels


class _Planner:
    def __init__(
        self,
        config: SnapFusionConfig,
        costs: tuple[Mapping[str, float], Mapping[str, float]],
        counts: Mapping[str, float],
        pictures: int,
        price: float | None,
    ) -> None:
        self.config, self.price = config, price
        self.pictures = pictures
        self.alone, self.together = ({**item, "pictures": float(pictures)} for item in costs)
        self.unet, self.decoder = (_FLOAT * counts[f"{part}_parameters"] for part in ("unet", "decoder"))
        self.data = pictures * _picture_bytes(config, counts)
        self.inputs = {name: _input_bytes(config, name) for name in _ASSUMED}

    def stages(self, memory: Mapping[str, float]) -> tuple[PlannedStage, ...]:
        from steps.latency.estimates import stage_estimates

        found = []
        both = zip(
            *(stage_estimates(self.config, costs) for costs in (self.alone, self.together)), strict=True
        )
        for alone, together in both:
            item = alone if alone.stage in _ALONE else together
            steps, pictures = self._work(item.stage)
            storage, traffic = self._bytes(item.stage, item.seconds)
            price = self.config.compute.price_of(item.stage) if self.price is None else self.price
            if item.stage in TRAINED:
                price *= self.config.compute.processes
            cost = price * item.seconds / 3600 if price else None
            found.append(
                PlannedStage(
                    item.stage, steps, pictures, memory.get(item.stage), item.seconds, cost, storage, traffic
                )
            )
        return tuple(found)

    def _work(self, stage: str) -> tuple[int | None, int | None]:
        """Optimizer steps and pictures."""
        section = self.config.evaluation
        if stage == "start":
            return None, self.pictures
        if stage in ("guidance_selection", "evaluation"):
            scales = len(section.guidance_scales)
            each = section.pictures if stage == "evaluation" else scales * section.validation_pictures
            return None, each * len(variants_of(section.variants, self.config.run.skip))
        training: TrainingConfig = training_of(self.config, stage)
        return training.iterations, training.iterations * training.batch_size * training.accumulation

    def _bytes(self, stage: str, seconds: float) -> tuple[float, float]:
        """What stays in the store, and what goes to and from it."""
        base = self.inputs["base"]
        if stage == "start":
            stays = sum(self.inputs.values()) + self.data
            return stays, stays + self.data  # and the user's own pictures, taken to be as large
        if stage not in TRAINED:
            judges = self.inputs["measure_clip"] + self.inputs["inception"]
            return 0.0, len(variants_of(self.config.evaluation.variants, self.config.run.skip)) * (
                base + judges + self.unet + self.decoder
            )
        training = training_of(self.config, stage)
        weights = self.decoder if stage == "decoder_distillation" else self.unet
        written = 1 + seconds // training.checkpoint_interval_s
        teachers = 0.0 if stage == "decoder_distillation" else 2 * weights
        read = base + teachers + (0.0 if stage == "decoder_distillation" else self._data_read(stage))
        sent = weights * (1 + _CHECKPOINT * (written if self.config.store.root.startswith("s3:") else 0))
        return weights * (1 + _KEPT * _CHECKPOINT), read + sent

    def _data_read(self, stage: str) -> float:
        """Of the data by a training: included pictures whole, of streamed ones those that it takes, each once if its cache
        holds all.
        """
        if self.config.data.source != "webdataset":
            return self.data
        taken = self.data / max(self.pictures, 1) * (self._work(stage)[1] or 0)
        held = self.data <= self.config.store.cache_gib * (1 << 30)
        return min(self.data, taken) if held else taken


def _input_bytes(config: SnapFusionConfig, name: InputName) -> float:
    """Of a folder or file that the configuration names, if it is here, else of what it is taken to be."""
    named = config.base.path if name == "base" else getattr(config.evaluation, name)
    if named is None or named == MICRO:
        return 0.0
    path = PROJECT_ROOT / named
    if path.is_file():
        return float(path.stat().st_size)
    if path.is_dir():
        return float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    return float(_ASSUMED[name])
