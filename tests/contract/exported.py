"""The components of a velocity model, converted once for all tests that look at packages."""

from pathlib import Path
from typing import Any

import coremltools as ct
import torch

from artifacts_schema.bundle import ComponentReport
from artifacts_schema.result_configs import CoremlExportConfig
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.models.stored import save_model
from steps.stages.coreml_export import export_component
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder
from tests.factories import context as make_context
from tests.steps.export.factories import export_base, pictures

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
