"""What compressed weights cost: every scheme on every component, mixed bits, and the smallest bundle that passes.

    python -m benchmarks.compression --json benchmarks/results/compression.json
    python -m benchmarks.compression --store .snapfusion/store --run 1795251884195849

Without --run, a v UNet and the base's own decoder are exported; with it, what that run ships. The packages are
compressed, read back and drawn with by the interpreter; nothing runs on Apple hardware.
"""

import argparse
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers import UNet2DConditionModel

from artifacts_schema.bundle import Component, DrawingScores
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.config import (
    ComputeConfig,
    CoremlCompressionConfig,
    CoremlExportConfig,
    DataConfig,
    ProgramCheckConfig,
)
from artifacts_schema.references import WeightsRef
from artifacts_schema.report import RunReport
from benchmarks.published import ROOT, Metric, publish, result
from steps.data.prepared import PreparedData, prepare_data
from steps.diffusion.schedule import NoiseSchedule
from steps.export.samples import Pictures
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext, configure_torch, quiet_libraries
from steps.models.base import load_base
from steps.models.clip import ClipScorer
from steps.models.stored import save_model
from steps.report.stored import record_of
from steps.stages.coreml_compression import compress_bundle as compress
from steps.stages.coreml_export import assemble_bundle
from steps.stages.coreml_export import run as export
from steps.store import LocalStore

_COMPONENTS: tuple[Component, ...] = ("text_encoder", "unet", "vae_decoder")
_MIB = 1 << 20


@dataclass(frozen=True)
class Shipped:
    """Where the weights lie and what they are."""

    store: LocalStore
    unet: WeightsRef
    decoder: WeightsRef


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base", help="diffusers folder")
    parser.add_argument(
        "--velocity", type=Path, default=ROOT / "assets/warm_starts/velocity", help="v UNet folder"
    )
    parser.add_argument("--clip", type=Path, default=ROOT / "assets/evaluators/openclip_signal")
    parser.add_argument("--store", type=Path, default=ROOT / ".snapfusion/store", help="of --run")
    parser.add_argument("--run", help="run id; its student and small decoder, made from --base")
    parser.add_argument(
        "--schemes",
        nargs="*",
        default=["palette_8", "palette_6", "palette_4", "linear_8", "mixed"],
        help="in this order",
    )
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def shipped(options: argparse.Namespace, folder: Path, base: Any) -> Shipped:
    """What is compressed: of a finished run, or the v UNet and the base's decoder."""
    if options.run:
        store = LocalStore(options.store)
        text = store.get_document(f"reports/{options.run}")
        if text is None:
            raise SystemExit(f"run {options.run} has no report in the store {options.store}")
        report = RunReport.from_json(text)
        records = [record_of(store, report, name) for name in ("student_8", "decoder_distillation")]
        return Shipped(store, records[0].weights, records[1].weights)
    store = LocalStore(folder / "store")
    unet = UNet2DConditionModel.from_pretrained(
        options.velocity, use_safetensors=True, local_files_only=True
    ).float()
    return Shipped(
        store,
        save_model(store, unet, schema="diffusers.UNet2DConditionModel"),
        save_model(store, base.vae, schema="diffusers.AutoencoderKL"),
    )


def measure(options: argparse.Namespace, folder: Path) -> CompressionRecord:
    """Export, compress and draw in the scratch `folder`."""
    base = load_base(options.base)
    parts = shipped(options, folder, base)
    context = StageContext(
        stage="coreml_compression", store=parts.store, work=folder, seed=0, progress=TerminalProgress()
    )
    config = DataConfig(limit=max(options.captions, 8))
    ref = prepare_data(base, config, parts.store, progress=context.progress, project_root=ROOT)
    data = PreparedData.load(parts.store, ref)
    check = ProgramCheckConfig(captions=2, pictures=options.captions)
    exporting = CoremlExportConfig(program_check=check)
    bundle = _bundle(options, folder, base, data, parts, exporting, context)
    inputs: Any = SimpleNamespace(base=base, data=data, signal_clip=ClipScorer.load(options.clip))
    return compress(
        bundle,
        inputs,
        parts.unet,
        parts.decoder,
        exporting,
        CoremlCompressionConfig(schemes=tuple(options.schemes)),
        context,
    )


def _bundle(  # noqa: PLR0913 - what a bundle is made of
    options: argparse.Namespace,
    folder: Path,
    base: Any,
    data: PreparedData,
    parts: Shipped,
    config: CoremlExportConfig,
    context: StageContext,
) -> Path:
    """The uncompressed bundle, exported as the pipeline does."""
    pictures = Pictures.of(data, config.program_check.captions)
    reports = [
        export(
            component,
            base,
            parts.unet,
            parts.decoder,
            pictures,
            config,
            context,
            prediction_type="v_prediction",
        )
        for component in _COMPONENTS
    ]
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    assemble_bundle(
        reports,
        base.path,
        context.store,
        folder / "bundle",
        steps=options.steps,
        guidance_scale=config.guidance_scale,
        schedule=base.scheduler_config,
        timesteps=schedule.grid(options.steps).tolist(),
        prediction_type="v_prediction",
        scaling_factor=base.scaling_factor,
        weights={"unet": parts.unet.sha256, "vae_decoder": parts.decoder.sha256},
        attribution="",
    )
    return folder / "bundle"


def metrics(record: CompressionRecord) -> list[Metric]:
    """Size, pictures and CLIP drop of everything that was tried; what failed is there with its reason."""
    rows: list[Metric] = []
    if record.uncompressed is None:
        return rows
    rows += _scores("all.fp16", record.uncompressed.bytes, record.uncompressed.scores, "as exported")
    for item in record.variants:
        name = f"{item.component}.{item.scheme}"
        rows += _scores(name, item.bytes, item.scores, "passed" if item.passed else item.note)
        if item.bits:
            counts = {bits: list(item.bits.values()).count(bits) for bits in sorted(set(item.bits.values()))}
            note = ", ".join(f"{count} weights at {bits} bits" for bits, count in counts.items())
            rows.append(_one(f"compression.{name}.weights", len(item.bits), "", note=note))
    for combination in record.combinations:
        name = "all." + "+".join(combination.schemes.values())
        note = "chosen" if combination.passed else combination.note
        rows += _scores(name, combination.bytes, combination.scores, note)
    return rows


def _scores(name: str, size: int, scores: DrawingScores | None, note: str) -> list[Metric]:
    rows = [_one(f"compression.{name}.size_mib", size / _MIB, "MiB", note=note)]
    if scores is None:
        return rows
    psnr = scores.psnr_db
    return [
        *rows,
        Metric(
            f"compression.{name}.image_psnr_db",
            psnr.median,
            "dB",
            psnr.n,
            psnr.p10,
            psnr.p90,
            f"median, p10 to p90; the worst {scores.worst_psnr_db:.1f}",
        ),
        _one(f"compression.{name}.clip_drop", scores.clip_drop, "cosine", psnr.n),
    ]


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
        record = measure(options, Path(folder))
    publish(result(metrics(record), module="benchmarks.compression", seed=0), options.json)


if __name__ == "__main__":
    main()
