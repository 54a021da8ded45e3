"""The Mac's script on Linux: everything but Core ML itself, which a made-up runner stands for."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.latency import measure_on_mac as script


class FakeRunner:
    """Takes as many milliseconds as the model's input has elements; stops at `fails`."""

    method, device, os = "benchmarker", "a phone", "iOS 18"

    def __init__(self, fails: str | None = None) -> None:
        self.fails, self.measured = fails, []  # type: ignore[var-annotated]

    def measure(self, package: Path, inputs: dict[str, Any], warmup: int, iterations: int) -> list[float]:
        if self.fails == package.stem:
            raise RuntimeError("the phone was unplugged")
        self.measured.append(package.stem)
        return [float(sum(value.size for value in inputs.values()))] * iterations


def write_kit(folder: Path) -> Path:
    models = {}
    for name, size in (("resnet_1", 5), ("baseline", 2)):
        package = folder / f"{name}.mlpackage"
        (package / "Data").mkdir(parents=True)
        (package / "Data" / "model").write_text(name)
        models[name] = {
            "package": package.name,
            "sha256": script.package_hash(package),
            "inputs": [{"name": "x", "shape": [1, size]}, {"name": "timestep", "shape": [2]}],
        }
    (folder / "manifest.json").write_text(json.dumps({"models": models}))
    return folder


def run(folder: Path, runner: Any) -> dict[str, Any]:
    models, kit = script.read_kit(folder)
    output = folder / "latency.json"
    record = script.begin(output, {"kit": kit, "device": runner.device})
    return script.measure(models, folder, runner, record, output, warmup=1, iterations=3)


def test_baseline_is_measured_first_and_last(tmp_path: Path) -> None:
    runner = FakeRunner()
    record = run(write_kit(tmp_path), runner)
    assert runner.measured == ["baseline", "resnet_1", "baseline"]
    samples = {entry["model"]: entry["samples_ms"] for entry in record["entries"]}
    assert samples == {"baseline": [4.0] * 6, "resnet_1": [7.0] * 3}
    assert json.loads((tmp_path / "latency.json").read_text()) == record


def test_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    write_kit(tmp_path)
    with pytest.raises(RuntimeError, match="unplugged"):
        run(tmp_path, FakeRunner(fails="resnet_1"))
    runner = FakeRunner()
    assert len(run(tmp_path, runner)["entries"]) == 2
    assert runner.measured == ["resnet_1", "baseline"]


def test_record_of_another_device_is_not_continued(tmp_path: Path) -> None:
    run(write_kit(tmp_path), FakeRunner())
    other = FakeRunner()
    other.device = "another phone"
    with pytest.raises(script.KitError, match="of another kit, device or setting"):
        run(tmp_path, other)


def test_changed_or_missing_package_is_refused(tmp_path: Path) -> None:
    write_kit(tmp_path)
    (tmp_path / "resnet_1.mlpackage" / ".DS_Store").write_text("a Mac's own")
    assert script.read_kit(tmp_path)
    model = tmp_path / "resnet_1.mlpackage" / "Data" / "model"
    model.write_text("changed")
    with pytest.raises(script.KitError, match="not what the manifest says"):
        script.read_kit(tmp_path)
    model.unlink()
    model.parent.rmdir()
    (tmp_path / "resnet_1.mlpackage" / ".DS_Store").unlink()
    model.parent.parent.rmdir()
    with pytest.raises(script.KitError, match="resnet_1 is missing"):
        script.read_kit(tmp_path)


@pytest.mark.parametrize("samples", [[1.0], [1.0, float("nan"), 2.0], [1.0, -1.0, 2.0]])
def test_times_that_are_none_are_refused(samples: list[float], tmp_path: Path) -> None:
    runner = FakeRunner()
    runner.measure = lambda *_: samples  # type: ignore[method-assign]
    with pytest.raises(script.KitError, match="expected 3 times, found"):
        run(write_kit(tmp_path), runner)


def test_benchmarker_that_fails_gives_way_to_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ImportError("no benchmarker")

    monkeypatch.setattr(script, "BenchmarkRunner", refuse)
    monkeypatch.setattr(script, "PredictRunner", lambda units: f"predict on {units}")
    assert script.make_runner("mac", "ALL", lambda _: None) == "predict on ALL"
    with pytest.raises(script.KitError, match="iPhone: no benchmarker"):
        script.make_runner("iphone", "ALL", lambda _: None)


def test_machine_without_core_ml_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("only on a Mac")

    monkeypatch.setattr(script, "BenchmarkRunner", refuse)
    monkeypatch.setattr(script, "PredictRunner", refuse)
    monkeypatch.setattr(sys, "argv", ["measure_on_mac.py", "--kit", str(write_kit(tmp_path))])
    assert script.main() == 1
    assert "no Core ML model runs here: only on a Mac" in capsys.readouterr().err
    assert not (tmp_path / "latency.json").exists()
