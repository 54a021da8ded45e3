"""The check and its gates, on small programs converted, saved and read back."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifacts_schema.bundle import Parity, ParityPoint
from artifacts_schema.result_configs import ProgramCheckConfig
from steps.export.program_check import Sample, check_gates, check_program, describe, psnr
from steps.files.errors import ExportError
from tests.steps.export.programs import CONTRACT, Cancels, Exporter, Layers, exporter, samples


@pytest.fixture
def convert(tmp_path: Path) -> Exporter:
    return exporter(tmp_path)


def check(package: Path, module: nn.Module, **gates: float) -> Parity:
    return check_program(
        "vae_decoder",
        package,
        module,
        CONTRACT,
        samples(),
        quantity="picture",
        gates=ProgramCheckConfig(**gates),  # type: ignore[arg-type]
    )


def test_saved_program_computes_what_torch_does(layers: Layers, package: Path) -> None:
    parity = check(package, layers)
    (point,) = parity.points
    assert (point.place, point.inputs, parity.quantity) == ("latents", 2, "picture")
    # float16 has 11 bits: about 66 dB of one rounding, less after several.
    assert 60 < point.rounded_db < point.exact_db < 100
    assert abs(point.exact_db - point.weights_db) < 1
    assert parity.largest_activation > 0 and parity.largest_operation


def test_parity_of_other_weights_is_below_the_gate(package: Path) -> None:
    with pytest.raises(ExportError, match=r"vae_decoder: expected at least 65.0 dB without rounding .*found"):
        check(package, Layers().eval())


def test_overflow_names_the_first_operation(convert: Exporter) -> None:
    module = Layers(gain=1e5).eval()
    with pytest.raises(
        ExportError, match=r"vae_decoder: .* is the first operation that is not finite in float16 \(latents\)"
    ):
        check(convert(module), module)


def test_error_jump_is_named(convert: Exporter) -> None:
    module = Cancels().eval()
    jump = check(convert(module), module, min_rounded_db=20, max_loss_db=60).error_jump
    assert jump is not None and "2000" not in jump and "relative error" in jump


def test_recovered_quantity_is_compared(layers: Layers, package: Path) -> None:
    z = torch.randn(1, 4, 16, 16).half().float()
    with torch.no_grad():
        picture = layers(z)
    # Divided by its own size the picture is +-1, and its small numbers' errors are magnified.
    none = ProgramCheckConfig(min_exact_db=0.0, min_rounded_db=0.0, max_loss_db=200.0)
    plain, divided = (
        check_program(
            "vae_decoder", package, layers, CONTRACT, [sample], quantity="picture", gates=none
        ).points[0]
        for sample in (Sample("a", {"z": z}), Sample("b", {"z": z}, scale=1 / picture))
    )
    assert divided.rounded_db < plain.rounded_db - 10
    assert divided.output_rounded_db == plain.output_rounded_db


def parity(**changes: float) -> Parity:
    numbers = {
        "exact_db": 80.0, "weights_db": 80.0, "rounded_db": 60.0, "torch_rounded_db": 62.0, "loss_db": 2.0,
        "output_exact_db": 80.0, "output_rounded_db": 60.0,
    }  # fmt: skip
    good = ParityPoint(place="t = 999", inputs=1, **numbers)
    return Parity(
        quantity="recovered velocity",
        points=(good, good.model_copy(update={"place": "t = 499", **changes})),
        largest_activation=3.0,
        largest_operation="conv x",
    )


GATES = ProgramCheckConfig()


def test_gates_pass() -> None:
    assert check_gates("unet", parity(), GATES) == parity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact_db": 64.0}, r"at least 65.0 dB without rounding .*t = 499.*found 64.0"),
        ({"exact_db": math.nan}, "without rounding"),
        ({"rounded_db": 49.0}, r"at least 50.0 dB with float16 results .*found 49.0"),
        ({"loss_db": 3.5}, r"at least 60.5 dB .*less .*max_loss_db.*found 60.0"),
    ],
)
def test_parity_below_a_gate_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ExportError, match=f"^unet: .*{message}"):
        check_gates("unet", parity(**changes), GATES)


def test_low_exact_ratio_of_the_weights_alone_is_noted() -> None:
    checked = check_gates("unet", parity(exact_db=58.2, weights_db=58.6), GATES)
    assert checked.exact_note is not None
    assert "t = 499: 58.2 dB" in checked.exact_note and "58.6 dB" in checked.exact_note
    assert checked.exact_note in describe(checked)


def test_psnr_by_definition() -> None:
    found = psnr(torch.tensor([1.0, -2.0]), torch.tensor([1.02, -2.02]))
    assert found == pytest.approx(40.0, abs=0.01)


def test_records_hold_the_worst_place() -> None:
    worst: Any = parity(exact_db=70.0, rounded_db=55.0)
    assert (worst.exact_db, worst.rounded_db) == (70.0, 55.0)
