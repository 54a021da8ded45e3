"""What every source of captioned pictures looks like to `steps.data.prepared`."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from steps.data.openmoji import (
    ATTRIBUTION,
    SPLITS,
    Captioned,
    Split,
    list_openmoji,
)
from steps.data.variants import draw_variants


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
        """Number of pictures."""

    @property
    def variants(self) -> int:
        """Pictures of one caption, which `pictures` yields one after the other."""

    def pictures(self) -> Iterator[Picture]:
        """Every picture."""


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
    """The embedded pictures, `variants` of each caption; `limit` bounds the captions of every split."""

    name = "openmoji"
    attribution = ATTRIBUTION

    def __init__(self, image_size: int, limit: int | None, variants: int = 1) -> None:
        self._size = image_size
        self.variants = variants
        everything = list_openmoji()
        chosen: set[str] = set()
        for split in SPLITS:
            chosen |= set(well_mixed((item.code for item in everything if item.split == split), limit))
        self._items: list[Captioned] = [item for item in everything if item.code in chosen]

    @property
    def total(self) -> int:
        """See Source."""
        return len(self._items) * self.variants

    def pictures(self) -> Iterator[Picture]:
        """See Source."""
        for item in self._items:
            for image in draw_variants([item.code], self._size, self.variants):
                yield Picture(item.split, item.caption, image)
