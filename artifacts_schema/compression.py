"""What `coreml_compression` leaves: every variant of every component that was tried, and what was chosen."""

from collections.abc import Sequence
from typing import ClassVar

from artifacts_schema.base import Frozen, Record
from artifacts_schema.bundle import Component, ComponentReport, DrawingScores, Scheme
from artifacts_schema.references import FolderRef


class CompressedVariant(Frozen):
    """One component with one scheme, the other components as they were exported.

    `package` and `scores` are None where it could not be made or drawn; `note` then says why, and else names the gate
    that was missed. `bits` are the palette's bits by weight, of the scheme `mixed` only. `weights` counts the weights
    that were compressed.
    """

    component: Component
    scheme: Scheme
    bytes: int
    package: FolderRef | None = None
    bits: dict[str, int] = {}
    scores: DrawingScores | None = None
    passed: bool = False
    note: str = ""


class Combination(Frozen):
    """One scheme for each component, drawn together. `bytes` of all packages."""

    schemes: dict[str, Scheme]
    bytes: int
    scores: DrawingScores | None = None
    passed: bool = False
    note: str = ""


class CompressionRecord(Record):
    """Left by `coreml_compression`.

    Pictures are compared with those of the torch models in float32, same captions and same noise. `uncompressed` is
    the bundle as exported, None where a component was left out of it so that nothing could be drawn. `combinations`
    are those that were drawn, in order; the last one that passed is `chosen`.
    """

    schema_name: ClassVar[str] = "snapfusion.compression"
    schema_version: ClassVar[int] = 1

    captions: tuple[str, ...]
    uncompressed: Combination | None
    variants: tuple[CompressedVariant, ...]
    combinations: tuple[Combination, ...]
    chosen: dict[str, Scheme]

    def package(self, component: str) -> FolderRef | None:
        """The chosen package of a component, None where it stays as it was exported."""
        scheme = self.chosen.get(component, "fp16")
        for variant in self.variants:
            if (variant.component, variant.scheme) == (component, scheme):
                return variant.package
        return None


def compressed_reports(
    reports: Sequence[ComponentReport], record: CompressionRecord
) -> tuple[ComponentReport, ...]:
    """The reports with the chosen packages in place of the exported ones."""
    return tuple(_with_package(report, record) for report in reports)


def _with_package(report: ComponentReport, record: CompressionRecord) -> ComponentReport:
    package = record.package(report.component)
    if package is None:
        return report
    scheme = record.chosen[report.component]
    note = report.parity_note
    if report.parity is not None:
        note += f"; measured before the weights were compressed ({scheme})"
    return report.model_copy(update={"package": package, "parity_note": note})
