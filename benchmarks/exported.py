"""A bundle of a base, exported as the pipeline does, for benchmarks of what happens to it then."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifacts_schema.bundle import REQUIRED_COMPONENTS, ComponentReport, DrawingScores
from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlExportConfig
from benchmarks.published import Metric
from steps.data.prepared import PreparedData
from steps.diffusion.schedule import NoiseSchedule
from steps.export.bundle import assemble_bundle
from steps.export.samples import Pictures
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.stages.coreml_export import export_component

MIB = 1 << 20


@dataclass(frozen=True)
class Shipped:
    """A base, and the stored v UNet and decoder that ship with it."""

    base: BaseModel
    data: PreparedData
    unet: WeightsRef
    decoder: WeightsRef

    def components(self, config: CoremlExportConfig, context: StageContext) -> tuple[ComponentReport, ...]:
        """Text encoder, UNet and decoder, converted and checked."""
        weights = {"unet": self.unet, "vae_decoder": self.decoder}
        pictures = Pictures.of(self.data, config.program_check.captions)
        return tuple(
            export_component(
                component,
                self.base,
                pictures,
                config,
                context,
                weights=weights.get(component),
                prediction_type="v_prediction",
            )
            for component in REQUIRED_COMPONENTS
        )

    def bundle(
        self,
        reports: tuple[ComponentReport, ...],
        config: CoremlExportConfig,
        context: StageContext,
        folder: Path,
        *,
        steps: int,
        draw: Callable[[Path], DrawingScores] | None = None,
    ) -> Path:
        """The bundle of `reports`, in `folder`, which is returned."""
        schedule = NoiseSchedule.from_config(self.base.scheduler_config)
        assemble_bundle(
            reports,
            self.base.path,
            context.store,
            folder,
            steps=steps,
            guidance_scale=config.guidance_scale,
            schedule=self.base.scheduler_config,
            timesteps=schedule.grid(steps).tolist(),
            prediction_type="v_prediction",
            scaling_factor=self.base.scaling_factor,
            weights={"unet": self.unet.sha256, "vae_decoder": self.decoder.sha256},
            attribution="",
            draw=draw,
        )
        return folder


def single(name: str, value: float, unit: str, n: int = 1, note: str = "") -> Metric:
    """A number without an interval."""
    return Metric(name, value, unit, n, value, value, note)


def picture_metric(name: str, scores: DrawingScores) -> Metric:
    """How near the pictures of a bundle are to torch's."""
    psnr = scores.psnr_db
    note = f"median, p10 to p90; the worst {scores.worst_psnr_db:.1f}"
    return Metric(name, psnr.median, "dB", psnr.n, psnr.p10, psnr.p90, note)
