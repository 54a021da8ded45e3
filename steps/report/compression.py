"""The report's part on compressed weights: every variant that was tried, and what was chosen."""

from artifacts_schema.bundle import DrawingScores
from artifacts_schema.compression import Combination, CompressionRecord
from steps.report import charts
from steps.report.content import Block, Chart, Heading, Table, Text

_MIB = 1 << 20
_HEADERS = ("component", "scheme", "size", "picture, worst", "picture, median", "CLIP drop", "verdict")


def compression(record: CompressionRecord | None) -> list[Block]:
    """Table and chart; nothing where nothing was tried."""
    if record is None or record.uncompressed is None:
        return []
    rows = [("all", "fp16", *_numbers(record.uncompressed.bytes, record.uncompressed.scores), "as exported")]
    for variant in record.variants:
        verdict = "passed" if variant.passed else variant.note
        rows.append((variant.component, variant.scheme, *_numbers(variant.bytes, variant.scores), verdict))
    for combination in record.combinations:
        verdict = "chosen" if combination.passed else combination.note
        rows.append(("all", _schemes(combination), *_numbers(combination.bytes, combination.scores), verdict))
    gates = record.config
    return [
        Heading("Compressed weights", sub=True),
        Text(
            "Every scheme on one component alone, the others as exported; then combinations, "
            f"smallest first. Pictures are the whole bundle's against torch's, {len(record.captions)} captions. "
            f"Gates: worst picture at {gates['min_image_psnr_db']:g} dB or more, CLIP drop {gates['max_clip_drop']:g} "
            "or less."
        ),
        Table(_HEADERS, tuple(rows)),
        Chart(charts.size_and_pictures(record), "Worst picture over the component's size; dashed: the gate."),
    ]


def _schemes(combination: Combination) -> str:
    return ", ".join(f"{name}: {scheme}" for name, scheme in combination.schemes.items())


def _numbers(size: int, scores: DrawingScores | None) -> tuple[str, str, str, str]:
    if scores is None:
        return f"{size / _MIB:.2f} MiB" if size else "-", "-", "-", "-"
    return (
        f"{size / _MIB:.2f} MiB",
        f"{scores.worst_psnr_db:.1f} dB",
        f"{scores.psnr_db.median:.1f} dB",
        f"{scores.clip_drop:+.4f}",
    )
