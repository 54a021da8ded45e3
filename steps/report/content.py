"""What a report page is made of; `flows/cards.py` shows it as a Metaflow card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """Markdown."""

    markdown: str


@dataclass(frozen=True)
class Table:
    """Rows of plain text."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, with a sentence that says what it shows."""

    spec: dict[str, object]
    caption: str


@dataclass(frozen=True)
class PictureRows:
    """Named rows of pictures under common captions; each PNG is one row."""

    rows: tuple[tuple[str, bytes], ...]
    caption: str


Block = Text | Table | Chart | PictureRows
