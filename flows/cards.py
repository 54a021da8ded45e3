"""Shows the blocks of a report page on a Metaflow card.

What Metaflow takes for Markdown it shows without sanitising, HTML and scripts included, and its reader of Markdown loses
what a backslash protects. So nothing goes to a card as Markdown (ruff forbids the import): titles, paragraphs, cells and
the labels of progress bars are shown as text, letter for letter.
"""

from collections.abc import Sequence
from typing import Any, Literal

from metaflow.cards import Image, MetaflowCardComponent, VegaChart
from metaflow.cards import Table as CardTable

from steps.report.content import Block, Chart, Heading, PictureRows, Table, Text


def render(card: Any, blocks: Sequence[Block]) -> None:
    """Append every block to a card."""
    for block in blocks:
        for component in _components(block):
            card.append(component)


class _Words(MetaflowCardComponent):
    """One of the card's elements that hold plain text, which Metaflow has no public component for."""

    def __init__(self, kind: Literal["title", "subtitle", "text"], text: str) -> None:
        self._element = {"type": kind, "text": text}

    def render(self) -> dict[str, str]:
        """The element, for the card's page."""
        return self._element


def _components(block: Block) -> list[Any]:
    if isinstance(block, Heading):
        return [_Words("subtitle" if block.sub else "title", block.text)]
    if isinstance(block, Text):
        return [_Words("text", block.text)]
    if isinstance(block, Table):
        return [CardTable([list(row) for row in block.rows], headers=list(block.headers))]
    if isinstance(block, Chart):
        return [VegaChart(block.spec), _Words("text", block.caption)]
    return _picture_rows(block)


def _picture_rows(block: PictureRows) -> list[Any]:
    rows = [[name, Image(png)] for name, png in block.rows]
    return [CardTable(rows, headers=["variant", "pictures"]), _Words("text", block.caption)]
