"""The comparison as lines of text, for a terminal."""

from collections.abc import Sequence

from steps.comparison.measures import metrics
from steps.comparison.page import Comparison, metric_cells, why
from steps.report.content import Grid, Text
from steps.store.base import Store

_WIDEST = 48


def comparison_lines(store: Store, found: Comparison) -> list[str]:
    """Verdicts, reasons and metrics; no line begins or ends in a table's blanks."""
    lines: list[str] = []
    for pair in found.pairs:
        lines += [_plain(pair.sentence), ""]
        lines += _columns([("", "value", "change", "verdict"), *(
            (c.name, c.value, c.change, c.outcome) for c in pair.criteria
        )])  # fmt: skip
        lines.append("")
    for block in why(store, found):
        if isinstance(block, Grid):
            cells = [tuple(cell.text for cell in row) for row in block.rows]
            lines += [*_columns([block.headers, *cells]), ""]
        elif isinstance(block, Text):
            lines += [_plain(block.text), ""]
    rows = [("", *(run.title for run in found.runs))]
    for metric in metrics(found.runs, found.subject):
        shown = metric_cells(metric, found)
        rows.append((metric.name, *(f"{text}{' *' if best else ''}" for text, _, best, _ in shown)))
    return [*lines, *_columns(rows), "* best"]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their cells below each other."""
    cells = [[_shortened(_plain(cell)) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _shortened(words: str) -> str:
    return words if len(words) <= _WIDEST else words[: _WIDEST - 3] + "..."


def _plain(words: str) -> str:
    """Without what a terminal would obey: names come from users and their data."""
    return "".join(letter if letter.isprintable() else " " for letter in words)
