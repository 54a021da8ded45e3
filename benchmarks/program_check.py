"""How close the exported packages come to torch: parity of every component, then pictures of the whole bundle.

    python -m benchmarks.program_check --json benchmarks/results/program_check.json --grid bundle.png

Exports the text encoder and decoder of a base and a v UNet of it as the pipeline does, runs the saved packages in the
interpreter, and draws with the bundle. Nothing is trained. Nothing runs on Apple hardware.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from artifacts_schema.bundle import BundleDrawing, ComponentReport, DrawingScores
from artifacts_schema.result_configs import CoremlExportConfig, ProgramCheckConfig
from benchmarks.exported import MIB, Shipped, picture_metric, single
from benchmarks.published import Metric, publish, result
from benchmarks.setting import begin, parser_for, prepared, velocity_unet
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext
from steps.models.base import load_base
from steps.models.clip import ClipScorer
from steps.models.stored import save_model
from steps.stages import bundle_drawing
from steps.store import LocalStore


@dataclass(frozen=True)
class Measured:
    """Reports of the components, and what their bundle drew."""

    reports: tuple[ComponentReport, ...]
    drawing: BundleDrawing
    picture: bytes


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_for(__doc__)
    parser.add_argument("--captions", type=int, default=4, help="for parity and for pictures")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--target", choices=("iOS17", "iOS18"), default="iOS17")
    parser.add_argument("--attention", choices=("original", "split_einsum"), default="original")
    parser.add_argument("--grid", type=Path, help="PNG: above torch's pictures, below the bundle's")
    parser.add_argument("--bundle", type=Path, help="keep the bundle in this folder")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> Measured:
    """Export, check and draw in the scratch `folder`."""
    store = LocalStore(folder / "store")
    context = StageContext("program_check", store, folder, seed=0, progress=TerminalProgress())
    base = load_base(options.base)
    config = CoremlExportConfig(
        minimum_deployment_target=options.target,
        attention=options.attention,
        program_check=ProgramCheckConfig(captions=options.captions, pictures=options.captions),
    )
    shipped = Shipped(
        base,
        prepared(base, store, max(options.captions, 8)),
        save_model(store, velocity_unet(options), schema="diffusers.UNet2DConditionModel"),
        save_model(store, base.vae, schema="diffusers.AutoencoderKL"),
    )
    inputs: Any = SimpleNamespace(base=base, data=shipped.data, measure_clip=ClipScorer.load(options.clip))
    drawings: list[BundleDrawing] = []

    def draw(bundle: Path) -> DrawingScores:
        drawings.append(
            bundle_drawing.draw_beside_torch(
                bundle, inputs, config, context, unet_ref=shipped.unet, decoder_ref=shipped.decoder
            )
        )
        return drawings[0].scores

    reports = shipped.components(config, context)
    target = options.bundle or folder / "bundle"
    shipped.bundle(reports, config, context, target, steps=options.steps, draw=draw)
    return Measured(reports, drawings[0], store.path_of(drawings[0].grid).read_bytes())


def metrics(measured: Measured) -> list[Metric]:
    """Headlines, then every place of every component, cost, and the pictures."""
    rows = []
    for report in measured.reports:
        rows += _component(report)
    scores = measured.drawing.scores
    rows.append(picture_metric("coreml.bundle.image_psnr_db", scores))
    for name in ("clip_score", "torch_clip_score", "clip_drop"):
        rows.append(single(f"coreml.bundle.{name}", getattr(scores, name), "cosine", scores.pictures))
    return rows


def _component(report: ComponentReport) -> list[Metric]:
    name, parity, cost = f"coreml.{report.component}", report.parity, report.cost
    rows = [
        single(f"{name}.size_mib", report.package.bytes / MIB, "MiB"),
        single(f"{name}.convert_seconds", cost.trace_s + cost.convert_s + cost.save_s, "s"),
        single(f"{name}.check_seconds", cost.check_s, "s"),
        single(f"{name}.peak_gib", cost.peak_memory_bytes / (1 << 30), "GiB", note="of the whole process"),
    ]
    if parity is None:
        return rows
    count = sum(point.inputs for point in parity.points)
    rows += [
        single(f"{name}.psnr_exact_db", parity.exact_db, "dB", count, note=parity.quantity),
        single(f"{name}.psnr_rounded_db", parity.rounded_db, "dB", count, note=parity.quantity),
        single(f"{name}.largest_activation", parity.largest_activation, "", count, parity.largest_operation),
    ]
    for point in parity.points:
        place = point.place.replace(" ", "").replace("=", "")
        for key, value in point.model_dump(exclude={"place", "inputs"}).items():
            rows.append(single(f"{name}.{place}.{key}", value, "dB", point.inputs, "the worst"))
    return rows


def main() -> None:
    """Parse, measure, publish."""
    options = arguments()
    begin(options)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options, Path(folder))
    if options.grid:
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        options.grid.write_bytes(measured.picture)
    publish(result(metrics(measured), module="benchmarks.program_check", seed=0), options.json)


if __name__ == "__main__":
    main()
