"""One arm from a run's weights to its measured pictures."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from artifacts_schema.ablation import AblationConfig, AblationRecord, Overlay
from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.config import parse_config
from artifacts_schema.evaluation import GuidancePoint
from artifacts_schema.latency import LatencyTable
from artifacts_schema.report import RunReport
from steps.ablation.conditioned import ConditionedUNet
from steps.ablation.students import Made, distilled
from steps.ablation.surgery import dropped, repaired
from steps.evaluation.bench import Bench
from steps.evaluation.subject import reference_of
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.stored import load_model
from steps.report.stored import record_of
from steps.stages.decoder_distillation import distil_decoder
from steps.stages.real_pictures import measure_split
from steps.store import Store

WEIGHTS = ("velocity_finetuning", "robust_training", "teacher_16", "student_16", "student_8")


@dataclass(frozen=True)
class FinishedRun:
    """What arms read of a finished run."""

    plan: Any
    weights: Mapping[str, Any]
    table: LatencyTable
    evolution: EvolutionRecord

    @classmethod
    def read(cls, store: Store, report: RunReport) -> "FinishedRun":
        """Raises StoreError for a record that is gone."""
        return cls(
            plan=record_of(store, report, "start"),
            weights={name: record_of(store, report, name).weights for name in WEIGHTS},
            table=record_of(store, report, "latency_profile"),
            evolution=record_of(store, report, "architecture_evolution"),
        )


class Arm:
    """Trains one arm, draws with it, and measures it on the validation protocol."""

    def __init__(
        self, run: FinishedRun, overlay: Overlay, common: AblationConfig, context: StageContext
    ) -> None:
        self.run, self.overlay, self.common, self.context = run, overlay, common, context
        self.config = parse_config(overlay.config)
        self.inputs = StageInputs(run.plan, context)
        self.bench = Bench(self.inputs, "validation", self.config.evaluation.features, context)
        pictures, captions = reference_of(self.bench.subject)
        self.reference = self.bench.features(pictures).numpy(), captions

    def record(self, run_id: str) -> AblationRecord:
        """The arm, made and measured."""
        started = time.monotonic()
        points, made = getattr(self, f"_{self.overlay.arm.kind}")()
        real = measure_split(self.bench, self.context)
        self.context.progress.close()
        return AblationRecord(
            stage="ablation",
            config=self.common.model_dump(mode="json", exclude={"store", "overlays", "arms", "threads"}),
            seed=self.context.seed,
            run=run_id,
            name=self.overlay.name,
            question=self.overlay.question,
            arm=self.overlay.arm,
            changes=self.overlay.changes,
            points=points,
            captions=tuple(self.bench.drawn(self.common.pictures)),
            reference=real,
            protocol=self.bench.protocol(real, self.common.pictures),
            iterations=made.iterations if made else 0,
            curve=made.curve if made else (),
            seconds=time.monotonic() - started,
        )

    def _distillation(self) -> tuple[dict[str, GuidancePoint], Made | None]:
        points, made = {}, None
        for steps in self.overlay.arm.steps:
            made = distilled(
                self.inputs, self.run.weights, self.overlay.arm, self.config, self.context, steps
            )
            points[f"{steps} steps"] = self._point(made.model, steps)
        return points, made

    def _dropping(self) -> tuple[dict[str, GuidancePoint], Made | None]:
        found = dropped(self.context, self.run.weights, self.overlay.arm)
        return {
            f"without {name}, {steps} steps": self._point(unet, steps)
            for name, unet in found.items()
            for steps in self.overlay.arm.steps
        }, None

    def _removal(self) -> tuple[dict[str, GuidancePoint], Made | None]:
        made = repaired(
            self.inputs,
            self.run.weights,
            self.overlay.arm,
            self.config,
            self.context,
            table=self.run.table,
            evolved=self.run.evolution.architecture,
        )
        return {f"{steps} steps": self._point(made.model, steps) for steps in self.overlay.arm.steps}, made

    def _decoder(self) -> tuple[dict[str, GuidancePoint], Made | None]:
        record = distil_decoder(
            self.inputs.base, self.inputs.data, self.config.decoder_distillation, self.context
        )
        decoder = load_model(self.context.store, record.weights).to(self.context.device)
        student = load_model(self.context.store, self.run.weights["student_8"]).to(self.context.device)
        steps = self.config.step_distillation.final_steps
        point = self._point(student, steps, decoder=decoder)
        return {f"{steps} steps": point}, Made(decoder, record.curve, record.iterations)

    def _point(self, unet: nn.Module, steps: int, decoder: Any = None) -> GuidancePoint:
        scale, count = self.common.guidance_scale, self.common.pictures
        images = self._images(
            unet, steps, decoder or self.inputs.base.vae.to(self.context.device), count, scale
        )
        return self.bench.measure(images, self.bench.drawn(count), scale, self.reference)

    def _images(self, unet: nn.Module, steps: int, decoder: Any, count: int, scale: float) -> Tensor:
        if isinstance(unet, ConditionedUNet):  # is told the scale, and evaluated once a step
            unet.set_guidance(torch.tensor([scale]))
            scale = 1.0
        return self.bench.draw(
            unet, decoder, count, scale, steps=steps, prediction_type="v_prediction", sampler="ddim"
        )
