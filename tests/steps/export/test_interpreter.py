"""Small programs, converted, saved, read back and run."""

import copy
import gc
import shutil
from pathlib import Path

import coremltools as ct
import pytest
import torch

from steps.export import interpreter
from steps.export.convert import known_warnings
from steps.export.interpreter import Program
from steps.export.program_check import psnr
from steps.files.errors import ExportError
from tests.steps.export.programs import Layers, exporter


def test_exact_run_has_only_the_weights_rounded(layers: Layers, package: Path) -> None:
    program, module = Program.load("vae_decoder", package), copy.deepcopy(layers)
    for parameter in module.parameters():
        parameter.data = parameter.data.half().float()
    z = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        expected = module(z)
    torch.testing.assert_close(program.run({"z": z}, rounded=False)["image"], expected, rtol=0, atol=2e-5)


def test_rounded_results_are_float16_numbers(package: Path) -> None:
    program = Program.load("vae_decoder", package)
    found = program.run({"z": torch.randn(1, 4, 16, 16)}, rounded=True)["image"]
    assert torch.equal(found, found.half().float())


def test_every_result_comes_once_and_in_order(package: Path) -> None:
    program = Program.load("vae_decoder", package)
    names = [executed.name for executed in program.execute({"z": torch.zeros(1, 4, 16, 16)}, rounded=False)]
    assert len(names) == len(set(names)) == sum(program.operations.values())
    assert names[-1] == "image"


def test_unknown_operation_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(interpreter.OPERATIONS, "silu")
    with pytest.raises(ExportError, match="vae_decoder: .* does not know the operation silu"):
        Program.load("vae_decoder", package)


def test_wrong_shape_of_an_operation_is_noticed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program.load("vae_decoder", package)
    monkeypatch.setitem(interpreter.OPERATIONS, "silu", lambda x: x[:, :1])
    with pytest.raises(ExportError, match="silu .* declares .* computes"):
        program.run({"z": torch.zeros(1, 4, 16, 16)}, rounded=False)


def test_operation_that_fails_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program.load("vae_decoder", package)
    monkeypatch.setitem(interpreter.OPERATIONS, "silu", lambda x, beta: x * beta)
    with pytest.raises(ExportError, match="vae_decoder: silu .*: .*missing"):
        program.run({"z": torch.zeros(1, 4, 16, 16)}, rounded=False)


def test_wrong_inputs_are_refused(package: Path) -> None:
    program = Program.load("vae_decoder", package)
    with pytest.raises(ExportError, match="expected the inputs"):
        program.run({"z": torch.zeros(1, 4, 8, 8)}, rounded=False)


@pytest.mark.parametrize("name", ["weights/weight.bin", "model.mlmodel"])
def test_package_that_cannot_be_read_is_named(name: str, package: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(package, tmp_path / "broken.mlpackage")
    file = broken / "Data" / "com.apple.CoreML" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ExportError, match="cannot be read back"):
        Program.load("vae_decoder", broken)


@pytest.mark.parametrize(("kind", "least"), [("palette", 15), ("linear", 35)])
def test_compressed_weights_are_read(
    layers: Layers, package: Path, tmp_path: Path, kind: str, least: float
) -> None:
    optimize = ct.optimize.coreml
    with known_warnings():
        model = ct.models.MLModel(str(package), skip_model_load=True)
        if kind == "palette":
            config = optimize.OptimizationConfig(optimize.OpPalettizerConfig(nbits=4, weight_threshold=0))
            small = optimize.palettize_weights(model, config)
        else:
            config = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(weight_threshold=0))
            small = optimize.linear_quantize_weights(model, config)
        small.save(str(tmp_path / "small.mlpackage"))
        del model, small
        gc.collect()  # coremltools leaves its scratch folders to the garbage collector, which warns
    program = Program.load("vae_decoder", tmp_path / "small.mlpackage")
    z = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        # Compressed, so not exact; but read as the numbers they stand for.
        assert least < psnr(layers(z), program.run({"z": z}, rounded=False)["image"]) < 65


class Attends(Layers):
    """iOS 18 has one operation for attention, iOS 17 has not."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.first(z).reshape(1, 8, 16, 16)
        return self.enlarged(torch.nn.functional.scaled_dot_product_attention(x, x, x))


def test_target_that_lacks_an_operation_is_named(tmp_path: Path) -> None:
    path = exporter(tmp_path, target="iOS18")(Attends().eval())
    assert Program.load("vae_decoder", path).operations["scaled_dot_product_attention"] == 1
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    spec.specificationVersion = ct.target.iOS17
    main = spec.mlProgram.functions["main"]
    main.block_specializations["CoreML7"].CopyFrom(main.block_specializations[main.opset])
    del main.block_specializations[main.opset]
    main.opset = "CoreML7"
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(ExportError, match=r"vae_decoder: .*scaled_dot_product_attention.*iOS17"):
        Program.load("vae_decoder", path)
