"""From a base to a kit, through a made-up device, to a latency table."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coremltools.converters.mil.mil import types

from artifacts_schema.device import DeviceMeasurement, LatencyKit
from artifacts_schema.result_configs import CoremlExportConfig
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.export.interpreter import Program
from steps.files.errors import ExportError, LatencyTableError
from steps.latency import measure_on_mac as script
from steps.latency.device import device_table
from steps.latency.parts import unet_parts
from steps.models.base import BaseModel
from steps.stages import latency_kit, latency_profile
from steps.stages.latency_kit import export_blocks
from tests.factories import Shown, context
from tests.steps.export.factories import export_base

DISPATCH = 0.5


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    return export_base()


@pytest.fixture(scope="module")
def folder(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    target = tmp_path_factory.mktemp("kit") / "of the base" / "folder"
    shown = Shown()
    export_blocks(base, target, CoremlExportConfig(), progress=shown)
    assert shown.done == list(range(2, shown.totals[0] + 1))  # the first is the baseline
    return target


@pytest.fixture(scope="module")
def kit(folder: Path) -> LatencyKit:
    return LatencyKit.from_json((folder / "manifest.json").read_text())


class FakeDevice:
    """1 ms a part, as many as there are a guided step, and the dispatch of every call."""

    method, device, os = "predict", "a Mac", "macOS 15"

    def __init__(self, kit: LatencyKit) -> None:
        parts = [name for name in kit.parts if name not in ("unet", "text_encoder", "decoder")]
        self.times = {kit.models[part.model].package: 1.0 for part in kit.parts.values()}
        self.times[kit.models[kit.parts["unet"].model].package] = 1.1 * len(parts)
        self.times[kit.models["baseline"].package] = 0.0

    def measure(self, package: Path, inputs: dict[str, Any], warmup: int, iterations: int) -> list[float]:
        return [DISPATCH + self.times[package.name]] * iterations


@pytest.fixture
def measured(folder: Path, kit: LatencyKit, tmp_path: Path) -> Path:
    """latency.json beside a copy of the manifest."""
    models, sha = script.read_kit(folder)
    (tmp_path / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    runner = FakeDevice(kit)
    head = {"schema": script.SCHEMA, "version": script.VERSION, "kit": sha, "device": runner.device}
    head |= {"os": runner.os, "coremltools": "9.0", "compute_units": "ALL", "method": "predict", "warmup": 1}
    output = tmp_path / "latency.json"
    record = script.begin(output, head)
    script.measure(models, folder, runner, record, output, warmup=1, iterations=4)
    return output


def test_the_decoder_takes_latents_and_gives_pictures(kit: LatencyKit, folder: Path) -> None:
    decoder = Program.load("decoder", folder / kit.models[kit.parts["decoder"].model].package)
    assert (decoder.inputs, decoder.outputs) == ({"z": (1, 4, 16, 16)}, {"image": (1, 3, 32, 32)})


def test_equal_blocks_share_a_package(kit: LatencyKit, folder: Path) -> None:
    assert (folder / "measure_on_mac.py").read_bytes() == Path(script.__file__).read_bytes()
    assert {path.name for path in folder.glob("*.mlpackage")} == {m.package for m in kit.models.values()}
    assert kit.parts["mid.resnets.0"].model == kit.parts["mid.resnets.1"].model
    assert kit.parts["down.0.resnets.0"].model != kit.parts["up.1.resnets.0"].model
    assert len(kit.models) < len(kit.parts) + 1


@pytest.mark.parametrize(
    "name", ["down.0.resnets.0", "down.0.attentions.0", "conv_in", "conv_out", "time_embedding"]
)
def test_package_computes_what_the_block_does(
    name: str, base: BaseModel, kit: LatencyKit, folder: Path
) -> None:
    model = kit.models[kit.parts[name].model]
    program = Program.load(name, folder / model.package)
    given = {
        n: torch.full(s, 500.0) if n == "timestep" else torch.randn(s) for n, s in program.inputs.items()
    }
    (found,) = program.run(given, rounded=False).values()
    values, unet = list(given.values()), base.unet
    with torch.no_grad():
        expected = {
            "down.0.resnets.0": lambda: unet.down_blocks[0].resnets[0](*values),
            "down.0.attentions.0": lambda: unet.down_blocks[0].attentions[0](
                values[0], encoder_hidden_states=values[1], return_dict=False
            )[0],
            "conv_in": lambda: unet.conv_in(values[0]),
            "conv_out": lambda: unet.conv_out(unet.conv_act(unet.conv_norm_out(values[0]))),
            "time_embedding": lambda: unet.time_embedding(unet.time_proj(values[0])),
        }[name]()
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)
    assert {var.dtype for var in program.block.inputs.values()} == {types.fp16}


def test_split_einsum_attention_computes_what_the_block_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, base = "down.0.attentions.0", export_base()
    original = copy.deepcopy(base.unet.down_blocks[0].attentions[0])
    only = [part for part in unet_parts(base.unet) if part.id == name]
    monkeypatch.setattr(latency_kit, "unet_parts", lambda _: only)
    monkeypatch.setattr(latency_kit, "_whole_models", lambda *_: {})
    kit = export_blocks(base, tmp_path / "kit", CoremlExportConfig(attention="split_einsum"))
    assert kit.attention == "split_einsum"
    program = Program.load(name, tmp_path / "kit" / kit.models[kit.parts[name].model].package)
    assert (
        program.operations["einsum"] == 8
    )  # two a head, two heads, the block's own positions and the text's
    given = {n: torch.randn(s) for n, s in program.inputs.items()}
    (found,) = program.run(given, rounded=False).values()
    x, text = given.values()
    with torch.no_grad():
        (expected,) = original(x, encoder_hidden_states=text, return_dict=False)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)


def test_device_table_has_the_dispatch_taken_off(measured: Path, base: BaseModel, tmp_path: Path) -> None:
    config = LatencyProfileConfig(backend="device", table=str(measured))
    table = latency_profile.profile(base, config, context(tmp_path / "stage"))
    assert table.backend == "device" and table.dtype == "float16"
    assert table.device == "a Mac, macOS 15, ALL"
    assert {row.latency.median for name, row in table.parts().items()} == {1.0}
    assert table.rows["unet"].latency.n == 4
    assert table.explained == pytest.approx(1 / 1.1)
    assert "less 0.5 ms of dispatch" in table.timing


def test_parts_that_do_not_add_up_are_refused(measured: Path, base: BaseModel, tmp_path: Path) -> None:
    config = LatencyProfileConfig(backend="device", table=str(measured), max_unexplained=0.05)
    with pytest.raises(LatencyTableError, match=r"the parts add up to 90\.9%"):
        latency_profile.profile(base, config, context(tmp_path / "stage"))


def test_table_of_another_batch_is_refused(measured: Path, base: BaseModel, tmp_path: Path) -> None:
    config = LatencyProfileConfig(backend="device", table=str(measured), batch_size=1)
    with pytest.raises(LatencyTableError, match="measured with batch 2, this run needs 1"):
        latency_profile.profile(base, config, context(tmp_path / "stage"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["entries"].pop(1), "were not measured; run measure_on_mac.py again"),
        (lambda r: r["entries"][1].update(sha256="0" * 64), "were measured on other packages"),
        (
            lambda r: r["entries"].append({"model": "x", "sha256": "", "samples_ms": [1]}),
            "x are not in the kit",
        ),
        (lambda r: r.update(kit="0" * 64), "was measured on the kit 000000000000"),
        (lambda r: r["entries"][1].update(samples_ms=[]), "expected a record of measure_on_mac.py"),
        (lambda r: r["entries"][1].update(samples_ms=[-1]), "expected times of 0 ms or more"),
        (lambda r: r["entries"].append(r["entries"][0]), "measured more than once: baseline"),
        (lambda r: r.update(version=2), "snapfusion.device_measurement version 2 is newer"),
        (lambda r: r["entries"][0].update(samples_ms=[1e3]), "no time is left of the UNet"),
    ],
)
def test_record_that_does_not_belong_is_refused(change: Any, message: str, measured: Path) -> None:
    record = json.loads(measured.read_text())
    change(record)
    measured.write_text(json.dumps(record))
    with pytest.raises(LatencyTableError, match=message):
        device_table(measured, measured.with_name("manifest.json"))


def test_kit_that_is_missing_is_named(measured: Path) -> None:
    with pytest.raises(LatencyTableError, match=r"its kit's manifest in .*nowhere\.json"):
        device_table(measured, measured.with_name("nowhere.json"))


def test_filled_folder_is_refused(folder: Path, base: BaseModel) -> None:
    with pytest.raises(ExportError, match="expected an empty folder"):
        export_blocks(base, folder, CoremlExportConfig())


def test_record_reads_back(measured: Path) -> None:
    record = DeviceMeasurement.from_json(measured.read_text())
    assert DeviceMeasurement.from_json(record.to_json()) == record
