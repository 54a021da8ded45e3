import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlExportConfig, ProgramCheckConfig
from steps.export.contract import package_name
from steps.export.convert import check_weights, export, weights_hash
from steps.files.errors import DiskFullError, ExportError
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.models.stored import save_model
from steps.stages.coreml_export import export_component
from tests.factories import context
from tests.steps.export.factories import CONTRACTS, export_base, pictures


def export_epsilon(
    component: Any,
    base: BaseModel,
    ref: WeightsRef | None,
    where: StageContext,
    config: CoremlExportConfig | None = None,
) -> None:
    export_component(
        component,
        base,
        pictures(),
        config or CoremlExportConfig(),
        where,
        weights=ref,
        prediction_type="epsilon",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    base, where = export_base(), context(tmp_path, "coreml_export")
    base.unet.conv_in.weight.data[0, 0, 0, 0] = value
    ref = save_model(where.store, base.unet, schema="diffusers.UNet2DConditionModel")
    with pytest.raises(ExportError, match=r"unet: .*conv_in\.weight"):
        export_epsilon("unet", base, ref, where)
    assert not list(where.work.iterdir())


def test_weights_beyond_float16_are_refused() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.data[0] = 1e5
    with pytest.raises(ExportError, match="vae_decoder: bias reaches 1e\\+05"):
        check_weights("vae_decoder", layer)


def test_hash_depends_on_weights_only() -> None:
    layer = nn.Linear(2, 2)
    same = nn.Linear(2, 2)
    same.load_state_dict(layer.state_dict())
    assert weights_hash(layer) == weights_hash(same)
    same.bias.data[0] += 1
    assert weights_hash(layer) != weights_hash(same)


def test_model_that_breaks_the_contract_is_refused(tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z[:, :3]  # not upsampled

    with pytest.raises(
        ExportError, match=r"vae_decoder: expected output image .*\(1, 3, 32, 32\), found .*16"
    ):
        export(
            "vae_decoder",
            Half(),
            CONTRACTS["vae_decoder"],
            tmp_path / "x.mlpackage",
            target="iOS17",
            attribution="",
            version="0",
        )


def test_operation_that_cannot_be_converted_names_the_component(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(z)

    with pytest.raises(ExportError, match="vae_decoder: coremltools"):
        export(
            "vae_decoder",
            Strange(),
            CONTRACTS["vae_decoder"],
            tmp_path / "x.mlpackage",
            target="iOS17",
            attribution="",
            version="0",
        )


def test_too_little_disk_is_refused_before_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, where = export_base(), context(tmp_path, "coreml_export")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(DiskFullError, match="vae_decoder: its package needs about"):
        export_epsilon("vae_decoder", base, None, where)
    assert not list(where.work.iterdir())


def test_package_below_its_gate_is_not_stored(tmp_path: Path) -> None:
    base, where = export_base(), context(tmp_path, "coreml_export")
    before = sorted(path.name for path in (tmp_path / "store").rglob("*"))
    config = CoremlExportConfig(program_check=ProgramCheckConfig(min_rounded_db=120.0))
    with pytest.raises(ExportError, match=r"vae_decoder: expected at least 120\.0 dB with float16 results"):
        export_epsilon("vae_decoder", base, None, where, config)
    assert sorted(path.name for path in (tmp_path / "store").rglob("*")) == before
    assert not list(where.work.iterdir())


def test_package_names_are_apples() -> None:
    name = package_name("unet", "runwayml/stable-diffusion-v1-5")
    assert name == "Stable_Diffusion_version_runwayml_stable-diffusion-v1-5_unet.mlpackage"
    with pytest.raises(ExportError, match="model id"):
        package_name("unet", "../x y")


def test_unknown_component_is_refused(tmp_path: Path) -> None:
    base, where = export_base(), context(tmp_path, "coreml_export")
    with pytest.raises(ExportError, match="found 'refiner'"):
        export_epsilon("refiner", base, None, where)


def test_unet_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unet: expected the weights"):
        export_epsilon("unet", export_base(), None, context(tmp_path, "coreml_export"))
