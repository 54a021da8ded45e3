"""What every source of captioned pictures looks like to `steps.data.prepared`."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from steps.data.openmoji import (
    ATTRIBUTION,
    SPLITS,
    Captioned,
    Split,
    composition_captions,
    draw,
    list_openmoji,
)

_DRAW_TOGETHER = 64


@dataclass(frozen=True)
class Picture:
    """A captioned picture: uint8 (3, size, size)."""

    split: Split
    caption: str
    image: Tensor


class Source(Protocol):
    """Captioned pictures in a fixed order, read once."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""

    @property
    def attribution(self) -> str:
        """What a model trained on these pictures must say about them."""

    @property
    def total(self) -> int:
        """Items that `pictures` looks at, skipped ones included."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Left-out items by reason; complete once `pictures` is used up."""

    def pictures(self) -> Iterator[Picture]:
        """Every usable picture. Raises DataError when too many are not."""

    def composition(self) -> Sequence[str]:
        """Captions of known words in combinations without a picture; may be empty."""


def well_mixed(keys: Iterable[str], limit: int | None) -> list[str]:
    """At most `limit` of the keys, spread evenly over all of them (by hash), in their given order.

    The subset of a smaller limit lies inside that of a larger one.
    """
    everything = list(keys)
    if limit is None or len(everything) <= limit:
        return everything
    kept = set(sorted(everything, key=_digest)[:limit])
    return [key for key in everything if key in kept]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class OpenMojiSource:
    """The embedded pictures; `limit` bounds every split."""

    name = "openmoji"
    attribution = ATTRIBUTION

    def __init__(self, image_size: int, limit: int | None) -> None:
        self._size = image_size
        self._limit = limit
        self._everything = list_openmoji()
        chosen: set[str] = set()
        for split in SPLITS:
            chosen |= set(well_mixed((item.code for item in self._everything if item.split == split), limit))
        self._items: list[Captioned] = [item for item in self._everything if item.code in chosen]

    @property
    def total(self) -> int:
        """See Source."""
        return len(self._items)

    @property
    def skipped(self) -> Mapping[str, int]:
        """See Source: every picture can be drawn."""
        return {}

    def pictures(self) -> Iterator[Picture]:
        """See Source."""
        for start in range(0, len(self._items), _DRAW_TOGETHER):
            items = self._items[start : start + _DRAW_TOGETHER]
            images = draw([item.code for item in items], self._size)
            for item, image in zip(items, images, strict=True):
                yield Picture(item.split, item.caption, image)

    def composition(self) -> Sequence[str]:
        """See Source; built from all train captions, whatever the limit."""
        train = [item.caption for item in self._everything if item.split == "train"]
        return well_mixed(composition_captions(train), self._limit)
