"""The report's part on Core ML: what was exported, how it compares with torch, and what the bundle draws."""

from collections.abc import Sequence

from artifacts_schema.bundle import BundleDrawing, ComponentReport
from artifacts_schema.compression import CompressionRecord
from steps.report.compression import compression
from steps.report.content import Block, Heading, PictureRows, Table, Text
from steps.store.base import Store

_MIB = 1 << 20


def core_ml(
    components: Sequence[ComponentReport],
    drawing: BundleDrawing | None,
    store: Store,
    compressed: CompressionRecord | None = None,
) -> list[Block]:
    """The blocks, in reading order."""
    exported = tuple(
        (
            item.component,
            f"{item.parameters / 1e6:.2f} M",
            f"{item.package.bytes / _MIB:.1f} MiB",
            f"{item.cost.convert_s:.1f} s",
            f"{item.cost.check_s:.1f} s",
            f"{item.cost.peak_memory_bytes / _MIB:.0f} MiB",
            item.parity_note,
        )
        for item in components
    )
    headers = ("component", "parameters", "size", "conversion", "check", "peak memory", "parity")
    return [
        Heading("Core ML"),
        Text(
            "Converted, read back and run by an interpreter on this machine; nothing here has run on "
            "Apple hardware."
        ),
        Table(headers, exported),
        *_parity(components),
        *compression(compressed),
        *_drawing(drawing, store),
    ]


def _parity(components: Sequence[ComponentReport]) -> list[Block]:
    rows = tuple(
        (
            f"{item.component}, {item.parity.quantity}",
            point.place,
            str(point.inputs),
            f"{point.exact_db:.1f} / {point.weights_db:.1f}",
            f"{point.rounded_db:.1f} / {point.torch_rounded_db:.1f}",
            f"{point.output_exact_db:.1f} / {point.output_rounded_db:.1f}",
        )
        for item in components
        if item.parity
        for point in item.parity.points
    )
    headers = (
        "dB against torch in float32", "at", "n", "float16 weights: program / torch",
        "and float16 results: program / torch", "program's own output: float16 weights / and results",
    )  # fmt: skip
    return [Table(headers, rows)] if rows else []


def _drawing(drawing: BundleDrawing | None, store: Store) -> list[Block]:
    if drawing is None:
        return []
    scores = drawing.scores
    rows = (
        ("pictures", str(scores.pictures)),
        ("picture against torch's, median", f"{scores.psnr_db.median:.1f} dB"),
        ("the worst", f"{scores.worst_psnr_db:.1f} dB"),
        ("CLIP score, bundle", f"{scores.clip_score:.4f}"),
        ("CLIP score, torch", f"{scores.torch_clip_score:.4f}"),
    )
    both = store.path_of(drawing.grid).read_bytes()
    return [
        Heading("The whole bundle", sub=True),
        Text(
            f"{drawing.steps} steps at guidance scale {drawing.guidance_scale:g}, from its own "
            "tokenizer files to the picture, float16 results rounded."
        ),
        Table(("what", "found"), rows),
        PictureRows(
            (("above torch, below the bundle", both),),
            f"From left to right: {' · '.join(drawing.captions)}",
        ),
    ]
