"""Shows the blocks of a report page on a Metaflow card.

What Metaflow takes for Markdown it shows without sanitising, HTML and scripts included, and its reader of Markdown loses
what a backslash protects. So nothing goes to a card as Markdown (ruff forbids the import): titles, paragraphs, cells and
the labels of progress bars are shown as text, letter for letter. The one exception is `flows.card_html`, whose blocks
Metaflow has no element for: it escapes every word.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from metaflow.cards import Image, MetaflowCardComponent, VegaChart
from metaflow.cards import Table as CardTable

from flows.card_html import HtmlBlock, to_html
from steps.report.content import Block, Chart, Heading, PictureRows, Table, Text


def render(card: Any, blocks: Sequence[Block]) -> None:
    """Append every block to a card; what shows as HTML takes the lines of text around it along, close together."""
    for wordy, group in groupby(blocks, key=_is_wordy):
        together = list(group)
        if wordy and any(isinstance(block, HtmlBlock) for block in together):
            found: list[Any] = [
                _Html(to_html(block for block in together if isinstance(block, HtmlBlock | Heading | Text)))
            ]
        else:
            found = [component for block in together for component in _components(block)]
        for component in found:
            card.append(component)


def _is_wordy(block: Block) -> bool:
    """True for what can be part of a line of HTML; the heading of a new part stays Metaflow's own."""
    return isinstance(block, HtmlBlock | Text) or (isinstance(block, Heading) and block.sub)


class _Words(MetaflowCardComponent):
    """One of the card's elements that hold plain text, which Metaflow has no public component for."""

    def __init__(self, kind: Literal["title", "subtitle", "text"], text: str) -> None:
        self._element = {"type": kind, "text": text}

    def render(self) -> dict[str, str]:
        """The element, for the card's page."""
        return self._element


class _Html(MetaflowCardComponent):
    """A line of HTML of `flows.card_html`."""

    def __init__(self, line: str) -> None:
        self._element = {"type": "markdown", "source": line}

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
    if isinstance(block, PictureRows):
        return _picture_rows(block)
    return [_Html(to_html([block]))]


def _picture_rows(block: PictureRows) -> list[Any]:
    rows = [[name, Image(png)] for name, png in block.rows]
    return [CardTable(rows, headers=["variant", "pictures"]), _Words("text", block.caption)]
