"""What compressed weights cost: every scheme on every component, mixed bits, and the smallest bundle that passes.

    python -m benchmarks.compression --json benchmarks/results/compression.json
    python -m benchmarks.compression --store .snapfusion/store --run 1795251884195849

Without --run, a v UNet and the base's own decoder are exported; with it, what that run ships. The packages are
compressed, read back and drawn with by the interpreter; nothing runs on Apple hardware.
"""

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from artifacts_schema.bundle import DrawingScores
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlCompressionConfig, CoremlExportConfig, ProgramCheckConfig
from benchmarks.exported import MIB, Shipped, picture_metric, single
from benchmarks.published import Metric, publish, result
from benchmarks.setting import add_run, begin, parser_for, prepared, velocity_unet, weights_of_run
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext
from steps.models.base import BaseModel, load_base
from steps.models.clip import ClipScorer
from steps.models.stored import save_model
from steps.stages.coreml_compression import compress_bundle
from steps.store import LocalStore


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_for(__doc__, evaluator="openclip_signal")
    add_run(parser, "its student and small decoder, made from --base")
    parser.add_argument(
        "--schemes",
        nargs="*",
        default=["palette_8", "palette_6", "palette_4", "linear_8", "mixed"],
        help="in this order",
    )
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


def weights(
    options: argparse.Namespace, folder: Path, base: BaseModel
) -> tuple[LocalStore, list[WeightsRef]]:
    """UNet and decoder: those of a finished run, or the v UNet and the base's own."""
    if options.run:
        return weights_of_run(options, "student_8", "decoder_distillation")
    store = LocalStore(folder / "store")
    return store, [
        save_model(store, velocity_unet(options), schema="diffusers.UNet2DConditionModel"),
        save_model(store, base.vae, schema="diffusers.AutoencoderKL"),
    ]


def measure(options: argparse.Namespace, folder: Path) -> CompressionRecord:
    """Export, compress and draw in the scratch `folder`."""
    base = load_base(options.base)
    store, (unet, decoder) = weights(options, folder, base)
    context = StageContext("coreml_compression", store, folder, seed=0, progress=TerminalProgress())
    shipped = Shipped(base, prepared(base, store, max(options.captions, 8)), unet, decoder)
    config = CoremlExportConfig(program_check=ProgramCheckConfig(captions=2, pictures=options.captions))
    reports = shipped.components(config, context)
    bundle = shipped.bundle(reports, config, context, folder / "bundle", steps=options.steps)
    inputs: Any = SimpleNamespace(base=base, data=shipped.data, signal_clip=ClipScorer.load(options.clip))
    compression = CoremlCompressionConfig(schemes=tuple(options.schemes))
    return compress_bundle(
        bundle, inputs, compression, context, export=config, unet_ref=unet, decoder_ref=decoder
    )


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
            rows.append(single(f"compression.{name}.weights", len(item.bits), "", note=note))
    for combination in record.combinations:
        name = "all." + "+".join(combination.schemes.values())
        note = "chosen" if combination.passed else combination.note
        rows += _scores(name, combination.bytes, combination.scores, note)
    return rows


def _scores(name: str, size: int, scores: DrawingScores | None, note: str) -> list[Metric]:
    rows = [single(f"compression.{name}.size_mib", size / MIB, "MiB", note=note)]
    if scores is None:
        return rows
    return [
        *rows,
        picture_metric(f"compression.{name}.image_psnr_db", scores),
        single(f"compression.{name}.clip_drop", scores.clip_drop, "cosine", scores.psnr_db.n),
    ]


def main() -> None:
    """Parse, measure, publish."""
    options = arguments()
    begin(options)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(options, Path(folder))
    publish(result(metrics(record), module="benchmarks.compression", seed=0), options.json)


if __name__ == "__main__":
    main()
