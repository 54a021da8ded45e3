"""DDIMScheduler.swift, compiled and held against the Python sampler; the constants are checked without a compiler."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steps.diffusion.ddim import walk
from steps.diffusion.schedule import NoiseSchedule, grid_timesteps
from tests.steps.export.factories import SCHEDULE

SOURCE = Path(__file__).parents[3] / "steps" / "export" / "swift" / "DDIMScheduler.swift"
HARNESS = Path(__file__).parent / "swift"
START = [0.5, -1.25, 2.0, 0.03125]

Sample = Callable[[int, str], tuple[list[int], list[float], list[float]]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Runs the compiled scheduler: grid, result and clean latent."""
    compiler = shutil.which("swiftc")
    if compiler is None:
        pytest.skip("needs a Swift compiler (swiftc), which is not on this machine")
    program = tmp_path_factory.mktemp("swift") / "ddim"
    sources = [SOURCE, HARNESS / "Harness.swift", HARNESS / "main.swift"]
    subprocess.run([compiler, *map(str, sources), "-o", str(program)], check=True, timeout=300)

    def run(steps: int, prediction: str) -> tuple[list[int], list[float], list[float]]:
        text = " ".join(map(str, START)) + "\n"
        done = subprocess.run(
            [str(program), str(steps), prediction], input=text, capture_output=True, text=True, check=True
        )
        grid, result, clean = done.stdout.splitlines()
        return list(map(int, grid.split())), list(map(float, result.split())), list(map(float, clean.split()))

    return run


def expected(steps: int, prediction: Any) -> Tensor:
    """The harness's network through the sampler's own walk."""
    schedule = NoiseSchedule.from_config(SCHEDULE)
    z = torch.tensor(START).reshape(1, 1, 1, -1)

    def network(z: Tensor, t: Tensor) -> Tensor:
        return 0.3 * z + 0.1 * torch.sin(t.double()).float()

    return walk(schedule, network, z=z, points=schedule.grid_to_clean(steps), kind=prediction).flatten()


@pytest.mark.parametrize(
    ("swift", "prediction"), [("epsilon", "epsilon"), ("velocity", "v_prediction")], ids=["eps", "v"]
)
@pytest.mark.parametrize("steps", [1, 8, 16])
def test_compiled_scheduler_is_our_sampler(sample: Sample, steps: int, swift: str, prediction: str) -> None:
    grid, result, clean = sample(steps, swift)
    assert grid == grid_timesteps(steps, train_timesteps=1000)
    assert result == clean  # the last step ends at the clean latent
    torch.testing.assert_close(torch.tensor(result), expected(steps, prediction), rtol=2e-4, atol=1e-5)


def test_defaults_are_the_schedule_of_stable_diffusion() -> None:
    text = SOURCE.read_text()
    found = {name: float(value) for name, value in re.findall(r"(\w+): (?:Int|Double) = ([\d.]+)", text)}
    assert found == {
        "stepCount": 8,
        "trainStepCount": SCHEDULE["num_train_timesteps"],
        "betaStart": SCHEDULE["beta_start"],
        "betaEnd": SCHEDULE["beta_end"],
    }


def test_grid_rounds_halves_to_even_and_the_schedule_is_scaled_linear() -> None:
    text = SOURCE.read_text()
    assert ".rounded(.toNearestOrEven)) - 1" in text
    assert "betaStart.squareRoot()" in text and "betaEnd.squareRoot()" in text


def test_everything_the_protocol_asks_for_is_there() -> None:
    """The names that Apple's pipeline reads, as the harness states them."""
    text = SOURCE.read_text()
    protocol = (HARNESS / "Harness.swift").read_text().split("public protocol Scheduler")[1]
    for name, kind in re.findall(r"var (\w+): ([^{]+) \{ get \}", protocol):
        assert re.search(
            rf"public (?:private\(set\) var|let) {name}: {re.escape(kind)}\b|{name}: {re.escape(kind)}", text
        )
    assert "public func step(" in text
