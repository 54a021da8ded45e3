"""Times the packages of a latency kit on this Mac, or on an iPhone connected to it, and leaves latency.json.

    python3 measure_on_mac.py                                  # in the kit's folder, on this Mac
    python3 measure_on_mac.py --device iphone                  # unlocked, in developer mode, connected by cable
    python3 measure_on_mac.py --kit FOLDER --output latency.json --iterations 50

This one file is all there is to copy beside the kit: it needs Python 3.10, numpy and coremltools 8.3 or newer. On a
Mac it takes coremltools' MLModelBenchmarker, or timed calls of predict where that is not to be had. An iPhone needs
the benchmarker, Xcode, and coremltools' `modelrunner` project, which its wheel for pip may lack (its source has it).
What was measured before an interruption is kept and not measured again.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

SCHEMA, VERSION = "snapfusion.device_measurement", 1
BASELINE = "baseline"
UNITS = ("CPU_AND_NE", "ALL", "CPU_AND_GPU", "CPU_ONLY")


class KitError(Exception):
    """The kit or the machine cannot be measured; the message says what to do."""


class Runner(Protocol):
    """Times one package: milliseconds of `iterations` calls after `warmup` calls that do not count."""

    method: str
    device: str
    os: str

    def measure(self, package: Path, inputs: dict[str, Any], warmup: int, iterations: int) -> list[float]:
        """See the class."""


class PredictRunner:
    """Calls of MLModel.predict on this Mac, timed from outside."""

    method = "predict"

    def __init__(self, units: str) -> None:
        import coremltools as ct

        self._ct, self._units = ct, ct.ComputeUnit[units]
        self.device, self.os = this_mac()

    def measure(self, package: Path, inputs: dict[str, Any], warmup: int, iterations: int) -> list[float]:
        """See Runner."""
        model = self._ct.models.MLModel(str(package), compute_units=self._units)
        samples = []
        for call in range(warmup + iterations):
            started = time.perf_counter()
            model.predict(inputs)
            if call >= warmup:
                samples.append(1e3 * (time.perf_counter() - started))
        return samples


class BenchmarkRunner:
    """coremltools' MLModelBenchmarker, which is told the time by the device itself."""

    method = "benchmarker"

    def __init__(self, units: str, phone: bool) -> None:
        import coremltools as ct
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

        self._ct, self._units, self._benchmarker = ct, ct.ComputeUnit[units], MLModelBenchmarker
        self._loop = asyncio.new_event_loop()
        self._phone = self._connect() if phone else None
        self.device, self.os = this_mac()
        if self._phone is not None:
            self.device, self.os = str(self._phone.name), f"iOS {self._phone.os_version}"

    def _connect(self) -> Any:
        from coremltools.models.ml_program.experimental.remote_device import Device, DeviceType

        found = Device.get_connected_devices(DeviceType.IPHONE)
        if not found:
            raise KitError(
                "no iPhone is connected; connect it by cable, unlock it and switch developer mode on"
            )
        return self._loop.run_until_complete(found[0].prepare_for_model_debugging())

    def measure(self, package: Path, inputs: dict[str, Any], warmup: int, iterations: int) -> list[float]:
        """See Runner."""
        model = self._ct.models.MLModel(str(package), compute_units=self._units, skip_model_load=True)
        benchmarker = self._benchmarker(model, self._phone)
        calls = benchmarker.benchmark_predict(inputs=inputs, iterations=warmup + iterations)
        result = self._loop.run_until_complete(calls)
        return [float(value) for value in result.samples[warmup:]]


def this_mac() -> tuple[str, str]:
    """Model and system of this machine."""
    return f"{platform.node()} ({platform.machine()})", f"macOS {platform.mac_ver()[0] or platform.release()}"


def package_hash(package: Path) -> str:
    """SHA-256 over the names and contents of a package's files."""
    digest = hashlib.sha256()
    for path in sorted(file for file in package.rglob("*") if file.is_file()):
        name = path.relative_to(package).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue  # a Mac's own .DS_Store
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(f"{name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def read_kit(folder: Path) -> tuple[dict[str, Any], str]:
    """The kit's models, and the hash of its manifest. Raises KitError for a package that is missing or changed."""
    try:
        text = (folder / "manifest.json").read_bytes()
        models: dict[str, Any] = json.loads(text)["models"]
    except (OSError, ValueError, KeyError) as error:
        raise KitError(f"expected the manifest.json of a latency kit in {folder}: {error}") from error
    if BASELINE not in models:
        raise KitError(f"the kit in {folder} has no model {BASELINE}; export it again")
    for name, model in models.items():
        package = folder / model["package"]
        if not package.is_dir():
            raise KitError(f"{package} of the model {name} is missing; copy the whole kit again")
        if package_hash(package) != model["sha256"]:
            raise KitError(f"{package} is not what the manifest says; copy the whole kit again")
    return models, hashlib.sha256(text).hexdigest()


def inputs_of(model: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a model: noise, but for token ids and timesteps, which must be whole numbers."""
    import numpy as np

    generator = np.random.default_rng(0)
    found = {}
    for tensor in model["inputs"]:
        shape = tuple(tensor["shape"])
        if tensor["name"] == "timestep":
            value = np.full(shape, 500.0)
        elif tensor["name"] == "input_ids":
            value = np.zeros(shape)
        else:
            value = generator.standard_normal(shape)
        found[tensor["name"]] = value.astype(np.float32)
    return found


def measure(  # noqa: PLR0913 - what is measured, with what, how often, and where it goes
    models: dict[str, Any],
    folder: Path,
    runner: Runner,
    record: dict[str, Any],
    output: Path,
    *,
    warmup: int,
    iterations: int,
) -> dict[str, Any]:
    """Time every model that `record` has not yet, the baseline first and once more at the end.

    `record` grows, and is written to `output` after every model. Raises KitError for times that are no times.
    """
    entries: list[dict[str, Any]] = record["entries"]
    known = {entry["model"] for entry in entries}
    todo = [name for name in sorted(models, key=lambda name: name != BASELINE) if name not in known]
    for number, name in enumerate([*todo, BASELINE] if todo else [], start=1):
        model = models[name]
        samples = runner.measure(folder / model["package"], inputs_of(model), warmup, iterations)
        if len(samples) != iterations or not all(value >= 0.0 for value in samples):
            raise KitError(f"{name}: expected {iterations} times, found {samples}")
        sys.stdout.write(f"{number}/{len(todo) + 1} {name} {sorted(samples)[len(samples) // 2]:.3f} ms\n")
        earlier = next((entry for entry in entries if entry["model"] == name), None)
        if earlier is not None:  # the baseline of the end: a device grows warm
            earlier["samples_ms"] += samples
        else:
            entries.append({"model": name, "sha256": model["sha256"], "samples_ms": samples})
        write(record, output)
    return record


def write(record: dict[str, Any], output: Path) -> None:
    """Put the record in place at once, so that an interruption leaves the one before."""
    scratch = output.with_suffix(".tmp")
    scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, output)


def begin(output: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The record at `output` if it was begun with the same kit, device and settings, else a new one."""
    if output.is_file():
        try:
            record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        except ValueError:
            record = {}
        if {key: record.get(key) for key in head} == head:
            return record
        raise KitError(
            f"{output} is of another kit, device or setting; move it away or name another --output"
        )
    return {**head, "entries": []}


def make_runner(device: str, units: str, probe: Callable[[Runner], object]) -> Runner:
    """The benchmarker; on the Mac itself plain calls where `probe` fails with it. Raises KitError without either."""
    try:
        runner: Runner = BenchmarkRunner(units, phone=device == "iphone")
        probe(runner)
        return runner
    except KitError:
        raise
    except Exception as error:  # coremltools raises Exception itself, too
        if device == "iphone":
            raise KitError(f"coremltools cannot measure on the iPhone: {error}") from error
        sys.stderr.write(f"coremltools' benchmarker does not work here ({error}); timing calls of predict\n")
    try:
        runner = PredictRunner(units)
        probe(runner)
        return runner
    except Exception as error:
        raise KitError(
            f"no Core ML model runs here: {error}; use a Mac with coremltools (pip install coremltools)"
        ) from error


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kit", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--device", choices=("mac", "iphone"), default="mac")
    parser.add_argument("--compute-units", choices=UNITS, default=UNITS[0])
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--output", type=Path, help="latency.json beside the kit's manifest by default")
    return parser.parse_args()


def main() -> int:
    """Check the kit, measure it, say where the record is."""
    options = arguments()
    output = options.output or options.kit / "latency.json"
    try:
        if options.iterations < 1 or options.warmup < 0:
            raise KitError(f"expected iterations of 1 or more, found {options.iterations}")
        models, kit = read_kit(options.kit)
        baseline = models[BASELINE]
        package, inputs = options.kit / baseline["package"], inputs_of(baseline)
        runner = make_runner(
            options.device, options.compute_units, lambda runner: runner.measure(package, inputs, 0, 1)
        )
        import coremltools

        head = {"schema": SCHEMA, "version": VERSION, "kit": kit, "device": runner.device, "os": runner.os}
        head |= {"coremltools": coremltools.__version__, "compute_units": options.compute_units}
        head |= {"method": runner.method, "warmup": options.warmup}
        record = begin(output, head)
        measure(
            models, options.kit, runner, record, output, warmup=options.warmup, iterations=options.iterations
        )
    except KitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
