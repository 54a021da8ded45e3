"""The components of a velocity model, converted once for all tests that look at packages."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import torch

from artifacts_schema.bundle import BundleManifest, ComponentReport
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.result_configs import CoremlCompressionConfig, CoremlExportConfig, ProgramCheckConfig
from steps.export.bundle import assemble_bundle
from steps.files.progress import Progress
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.models.stored import save_model
from steps.stages.coreml_compression import compress_bundle
from steps.stages.coreml_export import export_component
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder
from tests.factories import context as make_context
from tests.steps.export.factories import SCHEDULE, export_base, pictures, tokenizer_folder

ATTRIBUTION = "CC BY-SA 4.0, drawings by OpenMoji"


class Exported:
    """Text encoder, UNet and decoder."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.base: BaseModel = export_base()
        self.context: StageContext = make_context(folder, "coreml_export")
        store = self.context.store
        small = SmallDecoder.cut_from(self.base.vae, width_fraction=0.5)
        self.unet = save_model(store, EvolvedUNet.from_unet(self.base.unet), schema="snapfusion.EvolvedUNet")
        self.decoder = save_model(store, small, schema="snapfusion.SmallDecoder")
        self.reports = {c: self.convert(c) for c in ("text_encoder", "unet", "vae_decoder")}

    def convert(
        self, component: Any, config: CoremlExportConfig | None = None, count: int = 3
    ) -> ComponentReport:
        """A component, checked on `count` pictures."""
        return export_component(
            component,
            self.base,
            pictures(count),
            config or CoremlExportConfig(),
            self.context,
            weights={"unet": self.unet, "vae_decoder": self.decoder}.get(component),
            prediction_type="v_prediction",
            attribution=ATTRIBUTION,
        )

    def spec(self, report: ComponentReport) -> Any:
        return read_spec(self.context, report)


def read_spec(context: StageContext, report: ComponentReport) -> Any:
    folder = context.work / report.package_name
    for relative, ref in report.package.files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(context.store.path_of(ref).read_bytes())
    return ct.models.MLModel(str(folder), skip_model_load=True).get_spec()


def bundle_of(exported: Exported, folder: Path, unet: ComponentReport) -> BundleManifest:
    """With a UNet in one package or several, drawing in two steps."""
    return assemble_bundle(
        [unet, exported.reports["text_encoder"], exported.reports["vae_decoder"]],
        tokenizer_folder(folder.parent / "base"),
        exported.context.store,
        folder,
        steps=2,
        guidance_scale=3.0,
        schedule=SCHEDULE,
        timesteps=(999, 499),
        prediction_type="v_prediction",
        scaling_factor=0.13,
        weights={},
        attribution="",
    )


class Data:
    """Validation data with three captions."""

    drawn = pictures(3)

    def size(self, split: str) -> int:
        """As prepared data."""
        return 3

    def captions(self, split: str) -> list[str]:
        """As prepared data."""
        return list(self.drawn.captions)

    def latents(self, split: str, indices: torch.Tensor, **_: int) -> torch.Tensor:
        """As prepared data."""
        return self.drawn.latents[indices]

    def images(self, split: str, indices: torch.Tensor) -> torch.Tensor:
        """As prepared data."""
        return torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)


class Clip:
    """An evaluator whose score is a picture's brightness."""

    def scores(self, images: torch.Tensor, captions: Any) -> torch.Tensor:
        """As a ClipScorer."""
        return images.float().mean((1, 2, 3)) / 255


def compressed(
    exported: Exported, folder: Path, progress: Progress, **settings: Any
) -> tuple[CompressionRecord, CoremlCompressionConfig]:
    """What the stage makes of the bundle in `folder`."""
    inputs: Any = SimpleNamespace(base=exported.base, data=Data(), signal_clip=Clip())
    config = CoremlCompressionConfig(smallest_weight=16, **settings)
    record = compress_bundle(
        folder,
        inputs,
        config,
        replace(exported.context, progress=progress),
        export=CoremlExportConfig(program_check=ProgramCheckConfig(pictures=2)),
        unet_ref=exported.unet,
        decoder_ref=exported.decoder,
    )
    return record, config
