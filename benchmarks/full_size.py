"""Stable Diffusion 1.5 at its real size through export, program check and bundle: seconds and memory of each.

    python -m benchmarks.full_size --json benchmarks/results/full_size.json --state "idle machine"

Weights are random (seeded), so that ratios say what conversion does at this size and nothing about pictures. Every
component runs in a process of its own, as in the pipeline; seconds are those of the whole process. Nothing runs on
Apple hardware.
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from artifacts_schema.bundle import Component, ComponentReport
from artifacts_schema.readers import read_record
from artifacts_schema.result_configs import CoremlExportConfig, ProgramCheckConfig
from artifacts_schema.run_configs import ComputeConfig
from benchmarks.published import ROOT, Metric, publish, result

ARCHITECTURES = ("base", "snapfusion-sd15")
_COMPONENTS: tuple[Component, ...] = ("text_encoder", "vae_decoder", "unet")
_GATES = ("min_exact_db", "min_rounded_db", "max_loss_db")
_SEED = 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="scratch folder of 15 GB, kept; a temporary one otherwise"
    )
    parser.add_argument("--architecture", choices=ARCHITECTURES, nargs="+", default=["base"])
    parser.add_argument("--small-decoder", action="store_true", help="the half-width decoder")
    parser.add_argument("--chunked", action="store_true", help="the UNet in two packages")
    parser.add_argument(
        "--timesteps", type=int, nargs="+", default=[499], help="at which the UNet is checked"
    )
    parser.add_argument("--batch-size", type=int, choices=(1, 2), default=2)
    parser.add_argument("--micro", action="store_true", help="a tiny model: tries this program, no result")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--state", default="not said", help="what else the machine does, for the record")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what a process of its own does
    return parser.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """A base folder in diffusers' layout, and the weights that are exported, in a store."""
    from benchmarks.random_sd15 import write_random_base

    write_random_base(folder, architectures=options.architecture, micro=options.micro, seed=_SEED)


def export(folder: Path, options: argparse.Namespace, component: Component, architecture: str) -> None:
    """One component, checked; leaves its report."""
    from benchmarks.random_sd15 import random_pictures, stored
    from steps.export.components import COMPONENTS
    from steps.inputs.context import StageContext
    from steps.models.base import load_base
    from steps.stages.coreml_export import export_component

    base = load_base(folder / "base", only=COMPONENTS[component].needs)
    context = StageContext(stage="coreml_export", store=_store(folder), work=folder / "work", seed=_SEED)
    context.work.mkdir(exist_ok=True)
    # Measured without gates, held against them afterwards: a ratio that misses one is a result, too.
    gates = ProgramCheckConfig(
        timesteps=tuple(options.timesteps), min_exact_db=0.0, min_rounded_db=0.0, max_loss_db=100.0
    )
    config = CoremlExportConfig(
        program_check=gates, batch_size=options.batch_size, chunked_unet=options.chunked
    )
    weights = {"unet": architecture} | ({"vae_decoder": "small_decoder"} if options.small_decoder else {})
    report = export_component(
        component,
        base,
        random_pictures(base, seed=_SEED),
        config,
        context,
        weights=stored(folder, weights[component]) if weights.get(component) else None,
        prediction_type="v_prediction",
        model_id=f"random_{architecture}",
    )
    _report_path(folder, component, architecture).write_text(report.to_json())


def bundle(folder: Path, architecture: str) -> None:
    """Put the exported components together, and read the bundle back."""
    from steps.diffusion.schedule import NoiseSchedule
    from steps.export.bundle import assemble_bundle
    from steps.export.bundle_run import Bundle
    from steps.models.base import load_base

    base = load_base(folder / "base", only=())
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    assemble_bundle(
        _reports(folder, architecture),
        folder / "base",
        _store(folder),
        folder / "bundle",
        steps=8,
        guidance_scale=7.5,
        schedule=base.scheduler_config,
        timesteps=schedule.grid(8).tolist(),
        prediction_type="v_prediction",
        scaling_factor=base.scaling_factor,
        weights={},
        attribution="random weights",
    )
    Bundle.open(folder / "bundle")


def _store(folder: Path) -> Any:
    from steps.store import LocalStore

    return LocalStore(folder / "store")


def _report_path(folder: Path, component: Component, architecture: str) -> Path:
    return folder / f"report-{architecture if component == 'unet' else 'any'}-{component}.json"


def _reports(folder: Path, architecture: str) -> list[ComponentReport]:
    texts = (_report_path(folder, component, architecture).read_text() for component in _COMPONENTS)
    reports: list[Any] = [read_record(text) for text in texts]
    return reports


def _own_process(folder: Path, task: str) -> tuple[float, float]:
    """Seconds and peak GiB of a task in a process of its own."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.full_size", *sys.argv[1:], "--folder", str(folder)]
    subprocess.run([*command, "--task", task], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds, peak = time.monotonic() - started, float((folder / "peak").read_text())
    print(f"{task}: {seconds:.0f} s, {peak:.1f} GiB", file=sys.stderr, flush=True)
    return seconds, peak


def measure(options: argparse.Namespace, folder: Path) -> list[Metric]:
    """Every task of every architecture; the text encoder and the decoder are the same for all."""
    _own_process(folder, "prepare")
    rows: list[Metric] = []
    shared = 0.0
    for component in _COMPONENTS[:2]:
        seconds, peak = _own_process(folder, f"export:{component}:any")
        shared += seconds
        rows += _component(f"full_size.{component}", _report(folder, component, "any"), seconds, peak)
    for architecture in options.architecture:
        name = f"full_size.{architecture}"
        seconds, peak = _own_process(folder, f"export:unet:{architecture}")
        rows += _component(f"{name}.unet", _report(folder, "unet", architecture), seconds, peak)
        together, together_peak = _own_process(folder, f"bundle:{architecture}")
        rows.append(_one(f"{name}.bundle.seconds", together, "s", options.state))
        rows.append(_one(f"{name}.bundle.peak_gib", together_peak, "GiB", "of the whole process"))
        note = "export, check and bundle of every component, one after the other; " + options.state
        rows.append(_one(f"{name}.seconds", shared + seconds + together, "s", note))
    peaks = [row.value for row in rows if row.name.endswith("peak_gib")]
    rows.append(_one("full_size.peak_gib", max(peaks), "GiB", "of the largest process"))
    return rows


def _report(folder: Path, component: Component, architecture: str) -> ComponentReport:
    report: Any = read_record(_report_path(folder, component, architecture).read_text())
    return report


def _component(name: str, report: ComponentReport, seconds: float, peak: float) -> list[Metric]:
    cost, parity = report.cost, report.parity
    rows = [
        _one(f"{name}.seconds", seconds, "s", "of the whole process"),
        _one(f"{name}.convert_seconds", cost.trace_s + cost.convert_s + cost.save_s, "s"),
        _one(f"{name}.check_seconds", cost.check_s, "s"),
        _one(f"{name}.peak_gib", peak, "GiB", "of the whole process"),
        _one(f"{name}.size_mib", report.package.bytes / (1 << 20), "MiB"),
        _one(f"{name}.parameters", report.parameters, ""),
    ]
    if parity is None:
        return rows
    for point in parity.points:
        place = point.place.replace(" ", "").replace("=", "")
        for key in ("exact_db", "weights_db", "rounded_db", "torch_rounded_db", "loss_db"):
            rows.append(_one(f"{name}.{place}.{key}", getattr(point, key), "dB", parity.quantity))
    rows.append(_one(f"{name}.passes", float(_passes(report)), "", "1: the default gates are met"))
    rows.append(_one(f"{name}.largest_activation", parity.largest_activation, "", parity.largest_operation))
    return rows


def _passes(report: ComponentReport) -> bool:
    from steps.export.program_check import check_gates
    from steps.files.errors import ExportError

    if report.parity is None:
        return False
    try:
        check_gates(report.component, report.parity, ProgramCheckConfig())
    except ExportError:
        return False
    return True


def _one(name: str, value: float, unit: str, note: str = "") -> Metric:
    return Metric(name, value, unit, 1, value, value, note)


def _task(options: argparse.Namespace) -> None:
    """In a process of its own; leaves its peak memory in the scratch folder."""
    from steps.inputs.context import configure_torch, quiet_libraries

    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads, deterministic=False))
    kind, *names = options.task.split(":")
    if kind == "prepare":
        prepare(options.folder, options)
    elif kind == "export":
        export(options.folder, options, names[0], options.architecture[0] if names[1] == "any" else names[1])
    else:
        bundle(options.folder, names[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    (options.folder / "peak").write_text(str(peak))


def main() -> None:
    """Parse, measure, publish; or one task of it."""
    options = arguments()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.task:
        _task(options)
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        options.folder = options.folder.resolve()
        rows = measure(options, options.folder)
    else:
        with tempfile.TemporaryDirectory() as name:
            rows = measure(options, Path(name))
    publish(result(rows, module="benchmarks.full_size", seed=_SEED), options.json)


if __name__ == "__main__":
    main()
