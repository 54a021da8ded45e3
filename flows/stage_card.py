"""The card of a stage: Metaflow's own while the stage works, and a page without its megabyte of scripts afterwards.

A finished stage's card is a few lines of text and full bars in most cases; twenty cards of a run took 23 MB for them. What
needs the scripts (charts, tables, pictures) keeps them.
"""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from metaflow.cards import BlankCard

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;color:#333;margin:1.5rem;max-width:1012px;overflow-wrap:anywhere}"
    "progress{width:100%}.small{color:#767676;font-size:12px}"
)


def _line(tag: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda part: f"<{tag}>{html.escape(str(part['text']))}</{tag}>"


def _bar(part: Mapping[str, Any]) -> str:
    value, largest = part.get("value") or 0, part.get("max") or 1
    words = " · ".join(html.escape(str(word)) for word in (part.get("label"), part.get("details")) if word)
    return f'<p>{words}<br><progress value="{value}" max="{largest}"></progress> <span class="small">{value}/{largest}</span></p>'


_WRITERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "title": _line("h1"),
    "subtitle": _line("h2"),
    "text": _line("p"),
    "progressBar": _bar,
}


def _flat(parts: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The elements of a page; Metaflow puts those of a task into a section."""
    for part in parts:
        if part.get("type") == "section" and not part.get("title"):
            yield from _flat(part.get("contents", ()))
        else:
            yield part


class StageCard(BlankCard):
    """Metaflow's blank card, light where it can be once its task is done."""

    type = "stage"

    def render(self, task: Any, components: Sequence[Any] = (), runtime: bool = False) -> str:
        """The page of a task, whose elements Metaflow gives as JSON."""
        parts = list(_flat(self._components))
        if not runtime and all(part.get("type") in _WRITERS for part in parts):
            return light_page(str(task.pathspec), parts)
        found: str = super().render(task, components=list(components), runtime=runtime)
        return found


def light_page(title: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """A page of text and bars, every word of it escaped; it has no script."""
    name = html.escape(title)
    body = "".join(_WRITERS[part["type"]](part) for part in parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style></head>'
        f'<body><div class="small">{name}</div>{body}</body></html>'
    )


def register() -> None:
    """Make the type known to this process; Metaflow renders a card in one that imports the flow's file."""
    from metaflow.plugins import CARDS

    if StageCard not in CARDS:
        CARDS.append(StageCard)
