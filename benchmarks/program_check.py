"""How close the exported packages come to torch: parity of every component, then pictures of the whole bundle.

    python -m benchmarks.program_check --json benchmarks/results/program_check.json --grid bundle.png

Exports the text encoder and decoder of a base and a v UNet of it as the pipeline does, runs the saved packages in the
interpreter, and draws with the bundle. Nothing is trained. Nothing runs on Apple hardware.
"""

import argparse
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers import UNet2DConditionModel

from artifacts_schema.bundle import BundleDrawing, Component, ComponentReport, DrawingScores
from artifacts_schema.config import ComputeConfig, CoremlExportConfig, DataConfig, ProgramCheckConfig
from artifacts_schema.references import WeightsRef
from benchmarks.published import ROOT, Metric, publish, result
from steps.data.prepared import PreparedData, prepare_data
from steps.diffusion.schedule import NoiseSchedule
from steps.export.samples import Pictures
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext, configure_torch, quiet_libraries
from steps.models.base import BaseModel, load_base
from steps.models.clip import ClipScorer
from steps.models.stored import save_model
from steps.stages import bundle_drawing
from steps.stages.coreml_export import assemble_bundle, export_component
from steps.store import LocalStore

_COMPONENTS: tuple[Component, ...] = ("text_encoder", "unet", "vae_decoder")


@dataclass(frozen=True)
class Measured:
    """Reports of the components, and what their bundle drew."""

    reports: tuple[ComponentReport, ...]
    drawing: BundleDrawing
    picture: bytes


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base", help="diffusers folder")
    parser.add_argument(
        "--velocity", type=Path, default=ROOT / "assets/warm_starts/velocity", help="v UNet folder"
    )
    parser.add_argument("--clip", type=Path, default=ROOT / "assets/evaluators/openclip_measure")
    parser.add_argument("--captions", type=int, default=4, help="for parity and for pictures")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--target", choices=("iOS17", "iOS18"), default="iOS17")
    parser.add_argument("--attention", choices=("original", "split_einsum"), default="original")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path, help="PNG: above torch's pictures, below the bundle's")
    parser.add_argument("--bundle", type=Path, help="keep the bundle in this folder")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> Measured:
    """Export, check and draw in the scratch `folder`."""
    context = StageContext(
        stage="program_check",
        store=LocalStore(folder / "store"),
        work=folder,
        seed=0,
        progress=TerminalProgress(),
    )
    base = load_base(options.base)
    data = _data(base, context, options.captions)
    config = CoremlExportConfig(
        minimum_deployment_target=options.target,
        attention=options.attention,
        program_check=ProgramCheckConfig(captions=options.captions, pictures=options.captions),
    )
    unet = UNet2DConditionModel.from_pretrained(
        options.velocity, use_safetensors=True, local_files_only=True
    ).float()
    unet_ref = save_model(context.store, unet, schema="diffusers.UNet2DConditionModel")
    decoder_ref = save_model(context.store, base.vae, schema="diffusers.AutoencoderKL")
    pictures = Pictures.of(data, options.captions)
    reports = tuple(
        export_component(
            c, base, unet_ref, decoder_ref, pictures, config, context, prediction_type="v_prediction"
        )
        for c in _COMPONENTS
    )
    inputs: Any = SimpleNamespace(base=base, data=data, measure_clip=ClipScorer.load(options.clip))
    drawings: list[BundleDrawing] = []

    def draw(bundle: Path) -> DrawingScores:
        drawings.append(
            bundle_drawing.draw_beside_torch(bundle, inputs, unet_ref, decoder_ref, config, context)
        )
        return drawings[0].scores

    _assemble(reports, base, config, context, options, weights=(unet_ref, decoder_ref), draw=draw)
    return Measured(reports, drawings[0], context.store.path_of(drawings[0].grid).read_bytes())


def _data(base: BaseModel, context: StageContext, captions: int) -> PreparedData:
    """Enough of the embedded data for `captions` of the validation split."""
    config = DataConfig(limit=max(captions, 8))
    ref = prepare_data(base, config, context.store, progress=context.progress, project_root=ROOT)
    return PreparedData.load(context.store, ref)


def _assemble(  # noqa: PLR0913 - what a bundle is made of
    reports: tuple[ComponentReport, ...],
    base: BaseModel,
    config: CoremlExportConfig,
    context: StageContext,
    options: argparse.Namespace,
    *,
    weights: tuple[WeightsRef, WeightsRef],
    draw: Any,
) -> None:
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    assemble_bundle(
        reports,
        base.path,
        context.store,
        options.bundle or context.work / "bundle",
        steps=options.steps,
        guidance_scale=config.guidance_scale,
        schedule=base.scheduler_config,
        timesteps=schedule.grid(options.steps).tolist(),
        prediction_type="v_prediction",
        scaling_factor=base.scaling_factor,
        weights={"unet": weights[0].sha256, "vae_decoder": weights[1].sha256},
        attribution="",
        draw=draw,
    )


def metrics(measured: Measured) -> list[Metric]:
    """Headlines, then every place of every component, cost, and the pictures."""
    rows = []
    for report in measured.reports:
        rows += _component(report)
    scores = measured.drawing.scores
    psnr = scores.psnr_db
    rows.append(
        Metric(
            "coreml.bundle.image_psnr_db",
            psnr.median,
            "dB",
            psnr.n,
            psnr.p10,
            psnr.p90,
            f"median, p10 to p90; the worst {scores.worst_psnr_db:.1f}",
        )
    )
    for name in ("clip_score", "torch_clip_score", "clip_drop"):
        rows.append(_one(f"coreml.bundle.{name}", getattr(scores, name), "cosine", scores.pictures))
    return rows


def _component(report: ComponentReport) -> list[Metric]:
    name, parity, cost = f"coreml.{report.component}", report.parity, report.cost
    rows = [
        _one(f"{name}.size_mib", report.package.bytes / (1 << 20), "MiB"),
        _one(f"{name}.convert_seconds", cost.trace_s + cost.convert_s + cost.save_s, "s"),
        _one(f"{name}.check_seconds", cost.check_s, "s"),
        _one(f"{name}.peak_gib", cost.peak_memory_bytes / (1 << 30), "GiB", note="of the whole process"),
    ]
    if parity is None:
        return rows
    count = sum(point.inputs for point in parity.points)
    rows += [
        _one(f"{name}.psnr_exact_db", parity.exact_db, "dB", count, note=parity.quantity),
        _one(f"{name}.psnr_rounded_db", parity.rounded_db, "dB", count, note=parity.quantity),
        _one(f"{name}.largest_activation", parity.largest_activation, "", count, parity.largest_operation),
    ]
    for point in parity.points:
        place = point.place.replace(" ", "").replace("=", "")
        for key, value in point.model_dump(exclude={"place", "inputs"}).items():
            rows.append(_one(f"{name}.{place}.{key}", value, "dB", point.inputs, "the worst"))
    return rows


def _one(name: str, value: float, unit: str, n: int = 1, note: str = "") -> Metric:
    return Metric(name, value, unit, n, value, value, note)


def main() -> None:
    """Parse, measure, publish."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads))
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options, Path(folder))
    if options.grid:
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        options.grid.write_bytes(measured.picture)
    publish(result(metrics(measured), module="benchmarks.program_check", seed=0), options.json)


if __name__ == "__main__":
    main()
