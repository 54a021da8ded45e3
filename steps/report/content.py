"""What a report page is made of: text, numbers and pictures, no markup. `flows/cards.py` shows it as a Metaflow card.

Names, captions and messages come from users and their data. No field of a block is Markdown or HTML: whoever shows a
block shows text as text, so that nobody who writes one has to escape anything.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading; `sub` for one within the part that the last other one began."""

    text: str
    sub: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, with a sentence that says what it shows. Foreign text is in its data only."""

    spec: dict[str, object]
    caption: str


@dataclass(frozen=True)
class PictureRows:
    """Named rows of pictures under common captions; each PNG is one row."""

    rows: tuple[tuple[str, bytes], ...]
    caption: str


Block = Heading | Text | Table | Chart | PictureRows
