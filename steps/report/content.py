"""What a report page is made of: text, numbers and pictures, no markup. `flows/cards.py` shows it as a Metaflow card.

Names, captions and messages come from users and their data. No field of a block is Markdown or HTML: whoever shows a
block shows text as text, so that nobody who writes one has to escape anything.
"""

from dataclasses import dataclass
from typing import Literal


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


Tone = Literal["better", "worse", "undecided", "same"]


@dataclass(frozen=True)
class Box:
    """One number with its change, and a word on what the change means."""

    name: str
    value: str
    change: str
    tone: Tone
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Boxes side by side under one sentence that says what they amount to."""

    tone: Tone
    sentence: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Cell:
    """What a cell of a `Grid` holds; `small` stands below in small letters, coloured by `tone`."""

    text: str
    small: str = ""
    strong: bool = False
    tone: Tone = "same"


@dataclass(frozen=True)
class Grid:
    """A table that is as wide as the page, whatever it holds: what is too long is broken. The first column is named."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Strip:
    """What runs one after another, in named groups: each piece is its name and whether it was kept, removed or copied."""

    name: str
    groups: tuple[tuple[str, tuple[tuple[str, Literal["kept", "removed", "copied"]], ...]], ...]


@dataclass(frozen=True)
class Strips:
    """Strips one below the other, with what their pieces mean."""

    rows: tuple[Strip, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows (WebP or PNG; None: there is none), each with a line below; `columns` name them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[bytes | None, str], ...]], ...]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when their title is clicked. No charts: a chart that is hidden has no size."""

    title: str
    blocks: tuple["Heading | Text | Grid | Gallery | Strips", ...]


Block = Heading | Text | Table | Chart | PictureRows | Verdict | Grid | Strips | Gallery | Folded
