"""What a component is exported from, and the space that is asked for. Conversions themselves: tests/contract."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.config import parse_config
from steps.files.errors import DiskFullError
from steps.stages import coreml_export
from tests.contract.exported import Data
from tests.factories import context as make_context
from tests.steps.export.factories import export_base, pictures

MIB = 1 << 20


class Inputs:
    """Of an eps base; remembers which parts were loaded."""

    data: Any = Data()

    def __init__(self, weights: Any) -> None:
        self.weights, self.needs = weights, ()
        self.data.ref = SimpleNamespace(attribution="ours")

    def earlier(self, name: str) -> Any:
        assert name == "weights"
        return self.weights

    def base_with(self, needs: Any) -> Any:
        self.needs = needs
        return SimpleNamespace(prediction_type="epsilon")


@pytest.mark.parametrize(
    ("component", "weights", "more"),
    [("unet", "the student's", ()), ("unet", None, ("unet",)), ("vae_decoder", None, ())],
)
@pytest.mark.parametrize(("skip", "predicts"), [([], "v_prediction"), (["student_8"], "epsilon")])
def test_a_component_is_of_what_ships(
    monkeypatch: pytest.MonkeyPatch, component: str, weights: Any, more: Any, skip: list[str], predicts: str
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(coreml_export, "export_component", lambda *_, **named: given.update(named))
    monkeypatch.setattr(coreml_export, "made_by", lambda stage, skipped: stage not in skipped)
    inputs: Any = Inputs(weights)
    context: Any = SimpleNamespace(label=component)
    config = parse_config({}).model_copy(
        update={"run": parse_config({}).run.model_copy(update={"skip": skip})}
    )
    coreml_export.run(inputs, config, context)
    assert inputs.needs == coreml_export.COMPONENTS[component].needs + more  # type: ignore[index]
    assert given == {"weights": weights, "prediction_type": predicts, "attribution": "ours"}


@pytest.mark.parametrize(("chunked", "copies"), [(False, 1.5), (True, 3.0)])
def test_space_is_asked_for_before_anything_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunked: bool, copies: float
) -> None:
    asked: list[int] = []

    def full(_: Path, size: int, what: str) -> None:
        asked.append(size)
        raise DiskFullError(what)

    monkeypatch.setattr(coreml_export, "check_disk", full)
    base = export_base()
    config = parse_config({"coreml_export": {"chunked_unet": chunked}}).coreml_export
    with pytest.raises(DiskFullError, match="unet: its package"):
        coreml_export.export_component(
            "unet", base, pictures(1), config, make_context(tmp_path, "coreml_export"), weights=None,
            prediction_type="epsilon",
        )  # fmt: skip
    numbers = sum(parameter.numel() for parameter in base.unet.parameters())
    assert asked == [int(4 * numbers * copies) + 32 * MIB]
