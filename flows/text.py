"""Text for a terminal: tables, foreign words, the nearest valid word."""

import difflib
from collections.abc import Iterable, Sequence

_WIDEST = 60


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines with aligned columns; the first row is the head. What a terminal would obey is shown as `?`."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """Foreign text without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def nearest(word: str, valid: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'run'?`, or "" where nothing is near."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
