"""The blocks that Metaflow's cards have no element for, as HTML in which every word of ours or of others is escaped.

It reaches the card in the element that Metaflow shows without sanitising (`flows.cards` says why nothing else may):
one line of HTML, so that its reader of Markdown finds no Markdown in it. Nothing is wider than the card, and folding
needs no script.
"""

import base64
import html
from collections.abc import Iterable

from steps.report.content import Cell, Folded, Gallery, Grid, Heading, Strip, Strips, Text, Verdict

HtmlBlock = Verdict | Grid | Strips | Gallery | Folded
_COLOURS = {"better": "#0a7d4f", "worse": "#b3261e", "undecided": "#8a6100", "same": "#5f6368"}
_PALE = {"better": "#e7f5ee", "worse": "#fcebea", "undecided": "#fdf3dc", "same": "#f3f4f6"}
_SIGNS = {"better": "▲ better", "worse": "▼ worse", "undecided": "? undecided", "same": "= same"}
_PIECES = {
    "kept": "background:#2f6f9f;border:1px solid #2f6f9f",
    "removed": "background:repeating-linear-gradient(45deg,#fff,#fff 3px,#e3b7b3 3px,#e3b7b3 5px);border:1px solid #c98a84",
    "copied": "background:#e08a1e;border:1px solid #e08a1e",
}
_WIDE = "max-width:1012px;width:100%;box-sizing:border-box;overflow-wrap:anywhere;font-size:14px;line-height:1.4;color:#202124"


def to_html(blocks: Iterable[HtmlBlock | Heading | Text]) -> str:
    """One line of HTML for blocks that follow each other."""
    inner = "".join(f'<div style="margin:0 0 12px">{_inner(block)}</div>' for block in blocks)
    return f'<div class="snapfusion" style="{_WIDE}">{inner}</div>'


def _inner(block: HtmlBlock | Heading | Text) -> str:
    if isinstance(block, Verdict):
        return _verdict(block)
    if isinstance(block, Grid):
        return _grid(block)
    if isinstance(block, Strips):
        return "".join(map(_strip, block.rows)) + _legend()
    if isinstance(block, Gallery):
        return _gallery(block)
    if isinstance(block, Folded):
        return _folded(block)
    if isinstance(block, Heading):
        return f'<div style="font-weight:600;font-size:17px;margin:18px 0 0">{_text(block.text)}</div>'
    return f"<div>{_text(block.text)}</div>"


def _text(words: str) -> str:
    """Words as they are: nothing in them is HTML, and none of their line ends ends the line that this all is."""
    return html.escape(" ".join(words.split("\n")).replace("\r", " "), quote=True)


def _verdict(block: Verdict) -> str:
    colour, pale = _COLOURS[block.tone], _PALE[block.tone]
    boxes = "".join(
        f'<div style="flex:1 1 150px;min-width:0;border:1px solid #dadce0;border-top:4px solid {_COLOURS[box.tone]};'
        f'border-radius:6px;padding:8px 10px;background:#fff"><div style="color:#5f6368;font-size:12px">{_text(box.name)}'
        f'</div><div style="font-size:20px;font-weight:600">{_text(box.value)}</div>'
        f'<div style="font-size:12px">{_text(box.change)}</div><div style="font-size:12px;font-weight:600;'
        f'color:{_COLOURS[box.tone]}">{_SIGNS[box.tone]}</div><div style="font-size:11px;color:#5f6368">'
        f"{_text(box.note)}</div></div>"
        for box in block.boxes
    )
    return (
        f'<div style="border-left:6px solid {colour};background:{pale};padding:10px 12px;border-radius:4px;'
        f'font-size:15px;margin-bottom:8px">{_text(block.sentence)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px">{boxes}</div>'
    )


def _grid(block: Grid) -> str:
    # Room for a dotted key, as long as the others keep enough.
    first = "width:28%;" if len(block.headers) <= 4 else ""
    head = "".join(_header(name, first if place == 0 else "") for place, name in enumerate(block.headers))
    rows = "".join(
        '<tr style="border-top:1px solid #e8eaed">' + "".join(map(_cell, row)) + "</tr>" for row in block.rows
    )
    return _table(head, rows)


def _table(head: str, rows: str) -> str:
    style = "width:100%;table-layout:fixed!important;border-collapse:collapse;margin:0"
    return f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _header(name: str, width: str = "") -> str:
    style = f"{width}text-align:left;padding:4px 8px;font-size:12px;color:#5f6368;font-weight:600;vertical-align:bottom"
    return f'<th style="{style}">{_text(name)}</th>'


def _cell(cell: Cell) -> str:
    weight = "700" if cell.strong else "400"
    small = (
        f'<div style="font-size:11px;color:{_COLOURS[cell.tone]}">{_text(cell.small)}</div>'
        if cell.small
        else ""
    )
    style = "padding:5px 8px;vertical-align:top;text-align:left;border:none;background:none"
    return f'<td style="{style}"><span style="font-weight:{weight}">{_text(cell.text)}</span>{small}</td>'


def _strip(block: Strip) -> str:
    groups = "".join(
        f'<div style="flex:{max(1, len(pieces))} 1 0;min-width:0"><div style="display:flex;gap:2px">'
        + "".join(_piece(name, state) for name, state in pieces)
        + f'</div><div style="font-size:11px;color:#5f6368">{_text(title)}</div></div>'
        for title, pieces in block.groups
    )
    return (
        f'<div style="font-size:12px;font-weight:600;margin:8px 0 2px">{_text(block.name)}</div>'
        f'<div style="display:flex;gap:8px">{groups}</div>'
    )


def _piece(name: str, state: str) -> str:
    words = _text(f"{name}: {state}")
    return f'<div title="{words}" style="flex:1 1 0;min-width:0;height:22px;border-radius:2px;{_PIECES[state]}"></div>'


def _gallery(block: Gallery) -> str:
    head = _header("caption") + "".join(_header(name) for name in block.columns)
    rows = "".join(
        f'<tr style="border-top:1px solid #e8eaed">{_cell(Cell(caption))}'
        + "".join(_picture(*it) for it in row)
        + "</tr>"
        for caption, row in block.rows
    )
    return _table(head, rows)


def _picture(data: bytes | None, words: str) -> str:
    kind = "png" if data and data.startswith(b"\x89PNG") else "webp"
    shown = (
        f'<img alt="{_text(words)}" style="width:100%;max-width:128px;image-rendering:auto;display:block" '
        f'src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        if data
        else "-"
    )
    style = "padding:5px 8px;vertical-align:top;text-align:left;border:none;background:none"
    return f'<td style="{style}">{shown}<div style="font-size:11px;color:#5f6368">{_text(words)}</div></td>'


def _folded(block: Folded) -> str:
    inner = "".join(_inner(part) for part in block.blocks)
    return (
        '<details style="border:1px solid #dadce0;border-radius:6px;padding:6px 10px"><summary style="cursor:pointer;'
        f'font-weight:600;color:#1a73e8">{_text(block.title)}</summary>{inner}</details>'
    )


def _legend() -> str:
    """What the pieces of a strip mean."""
    pieces = "".join(
        f'<span style="display:inline-block;width:14px;height:12px;border-radius:2px;margin:0 4px 0 12px;{style}"></span>{name}'
        for name, style in _PIECES.items()
    )
    return f'<div style="font-size:12px;margin:4px 0 0 -12px">{pieces}</div>'
