"""Shows a report page as a Metaflow card."""

from collections.abc import Sequence
from typing import Any

from metaflow.cards import Image, Markdown, VegaChart
from metaflow.cards import Table as CardTable

from steps.report.content import Block, Chart, PictureRows, Table, Text


def render(card: Any, blocks: Sequence[Block]) -> None:
    """Append every block to a card."""
    for block in blocks:
        for component in _components(block):
            card.append(component)


def _components(block: Block) -> list[Any]:
    if isinstance(block, Text):
        return [Markdown(block.markdown)]
    if isinstance(block, Table):
        return [CardTable([list(row) for row in block.rows], headers=list(block.headers))]
    if isinstance(block, Chart):
        return [VegaChart(block.spec), Markdown(f"*{block.caption}*")]
    return _picture_rows(block)


def _picture_rows(block: PictureRows) -> list[Any]:
    rows = [[Markdown(name), Image(png)] for name, png in block.rows]
    return [CardTable(rows, headers=["variant", "pictures"]), Markdown(f"*{block.caption}*")]
