"""Real conversions, held against what Apple's Swift runtime looks for; names and types are spelt out."""

from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
import torch

from artifacts_schema.bundle import ComponentReport
from artifacts_schema.config import CoremlExportConfig
from steps.context import StageContext
from steps.coreml_export import run
from steps.diffusion.small_decoder import SmallDecoder
from steps.models import BaseModel, save_model
from steps.unet.evolved import EvolvedUNet
from tests.steps.export.factories import export_base
from tests.steps.latency.factories import context as make_context

FLOAT16, FLOAT32 = 65552, 65568
ATTRIBUTION = "CC BY-SA 4.0, drawings by OpenMoji"


class Exported:
    """The three components of a velocity model, converted once for all tests of this module."""

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

    def convert(self, component: Any) -> ComponentReport:
        return run(
            component,
            self.base,
            self.unet,
            self.decoder,
            CoremlExportConfig(),
            self.context,
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


def described(features: Any) -> dict[str, tuple[tuple[int, ...], int]]:
    return {
        f.name: (tuple(f.type.multiArrayType.shape), f.type.multiArrayType.dataType)
        for f in features
        if f.shortDescription
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


def test_text_encoder(exported: Exported) -> None:
    report = exported.reports["text_encoder"]
    assert report.package_name == "Stable_Diffusion_version_snapfusion_text_encoder.mlpackage"
    description = exported.spec(report).description
    assert described(description.input) == {"input_ids": ((1, 7), FLOAT32)}
    assert described(description.output) == {
        "last_hidden_state": ((1, 7, 12), FLOAT32),
        "pooled_outputs": ((1, 12), FLOAT32),
    }


def test_unet(exported: Exported) -> None:
    report = exported.reports["unet"]
    assert report.package_name == "Stable_Diffusion_version_snapfusion_unet.mlpackage"
    description = exported.spec(report).description
    assert described(description.input) == {
        "sample": ((2, 4, 16, 16), FLOAT32),
        "timestep": ((2,), FLOAT16),
        "encoder_hidden_states": ((2, 12, 1, 7), FLOAT16),
    }
    assert described(description.output) == {"noise_pred": ((2, 4, 16, 16), FLOAT32)}
    assert (report.velocity_folded, report.output_prediction) == (True, "epsilon")
    assert report.source_class == "EvolvedUNet"


def test_vae_decoder(exported: Exported) -> None:
    report = exported.reports["vae_decoder"]
    assert report.package_name == "Stable_Diffusion_version_snapfusion_vae_decoder.mlpackage"
    description = exported.spec(report).description
    assert described(description.input) == {"z": ((1, 4, 16, 16), FLOAT16)}
    assert described(description.output) == {"image": ((1, 3, 32, 32), FLOAT32)}
    assert report.decoder_factor == 0.18215 / 0.13
    assert report.source_class == "SmallDecoder"


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_metadata(exported: Exported, component: str) -> None:
    metadata = exported.spec(exported.reports[component]).description.metadata
    assert metadata.author and metadata.shortDescription and metadata.versionString
    assert metadata.license == ATTRIBUTION
    assert metadata.userDefined["com.github.apple.ml-stable-diffusion.version"]


def test_angles_and_noise_stay_float32(exported: Exported) -> None:
    found = exported.reports["unet"].float32_operations
    assert (found["sin"], found["cos"], found["add"], found["gather"]) == (1, 1, 1, 2)
    # Nothing else does: the rest of the network is meant to be float16.
    assert "conv" not in found and "linear" not in found


# Fails when other conversions ran before it in the same process.
@pytest.mark.xfail(
    strict=False, reason="coremltools numbers its casts in an order that varies within a process"
)
def test_equal_models_are_equal_files(exported: Exported) -> None:
    again = exported.convert("text_encoder")
    assert again.package == exported.reports["text_encoder"].package
    assert again.identity() == exported.reports["text_encoder"].identity()
    assert again.cost != exported.reports["text_encoder"].cost


def test_plain_epsilon_unet_without_batch_of_two(tmp_path: Path) -> None:
    base, where = export_base(), make_context(tmp_path, "coreml_export")
    ref = save_model(where.store, base.unet, schema="diffusers.UNet2DConditionModel")
    config = CoremlExportConfig(batch_size=1, attention="split_einsum", minimum_deployment_target="iOS18")
    report = run("unet", base, ref, None, config, where, prediction_type="epsilon")
    spec = read_spec(where, report)
    assert described(spec.description.input)["sample"] == ((1, 4, 16, 16), FLOAT32)
    assert list(described(spec.description.output)) == ["noise_pred"]
    assert not report.velocity_folded and "gather" not in report.float32_operations
    assert report.source_class == "UNet2DConditionModel"
