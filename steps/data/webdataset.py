"""The user's own pictures: webdataset shards, tar files with a picture and a caption a sample.

A shard is indexed from its headers before anything expensive runs, and read at the indexed places; no member is ever
written to disk, so none can escape. Names are split into key and extension by webdataset's own rule.
"""

import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from artifacts_schema.filters import OF_PICTURE, Filter
from artifacts_schema.run_configs import DataConfig
from steps.data.openmoji import Split
from steps.data.tar_members import members_of, open_shard
from steps.files.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
_TEXT_BYTES = 1 << 16  # a caption or JSON beyond this is none; 77 tokens are read
_BYTES_PER_PIXEL = 8  # no sensible picture file is larger: 16 bits a channel, uncompressed, with alpha
_TURNED = range(5, 9)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


class SkippedItem(Exception):
    """One item cannot be used; the text is the reason it is counted under."""


class FilteredItem(Exception):
    """One item is left out by a filter; the text is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a shard: where its picture's bytes lie, its caption, and why it is skipped or filtered."""

    key: str
    offset: int
    size: int
    caption: str
    problem: str = ""
    filtered: str = ""


def index_shard(path: Path, config: DataConfig) -> list[Sample]:
    """Every sample of a shard in order, from its headers, captions and JSON.

    Raises DataError, naming the shard, for one that is truncated, not a plain tar file or without a single sample of picture
    and caption.
    """
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    with open_shard(path) as tar:
        for member in members_of(path, tar):
            _add(path, members, member)
        reader = _Reader(tar, config)
        samples = [reader.sample(key, files) for key, files in members.items()]
    if all(sample.problem == "incomplete_sample" for sample in samples):
        found = sorted({extension for files in members.values() for extension in files}) or ["nothing"]
        raise DataError(
            f"shard {path}: expected samples of one picture ({', '.join(IMAGE_EXTENSIONS)}) and {reader.wanted} under the "
            f"same name, found {', '.join(found[:8])}{reader.hint}"
        )
    return samples


def _add(path: Path, members: dict[str, dict[str, tarfile.TarInfo]], member: tarfile.TarInfo) -> None:
    """File a member under its sample; links, folders and what has no extension are passed over."""
    if not member.isreg() or member.issparse():
        return
    key, extension = base_plus_ext(member.name)
    if key is None or Path(key).name.startswith("__"):
        return
    files = members.setdefault(key, {})
    if extension.lower() in files:
        raise DataError(f"shard {path} holds {member.name} twice; every sample needs a name of its own")
    files[extension.lower()] = member


class _Reader:
    """Reads what a shard says of its pictures."""

    def __init__(self, tar: tarfile.TarFile, config: DataConfig) -> None:
        self._tar, self._field = tar, config.caption_field
        filters = [Filter.parse(text) for text in config.filters]
        self._filters = [item for item in filters if item.field not in OF_PICTURE]
        self._fields: tuple[str, ...] = ()  # of a JSON without the caption

    @property
    def wanted(self) -> str:
        """What must lie beside a picture."""
        return f"a .json with the field {self._field!r}" if self._field else "one .txt caption"

    @property
    def hint(self) -> str:
        """Where captions may be instead."""
        if not self._fields:
            return "; data.caption_field names a field of the .json, unset it is the .txt"
        return f" with the fields {', '.join(self._fields[:12])}; set data.caption_field to the caption's"

    def sample(self, key: str, files: Mapping[str, tarfile.TarInfo]) -> Sample:
        """One sample of the members with its name."""
        image = next((files[extension] for extension in IMAGE_EXTENSIONS if extension in files), None)
        if image is None:
            return Sample(key, 0, 0, "", "incomplete_sample")
        try:
            fields = self._json(files)
            caption = self._caption(files, fields)
        except SkippedItem as problem:
            return Sample(key, image.offset_data, image.size, "", str(problem))
        dropped = next((reason for item in self._filters if (reason := item.dropped(fields))), "")
        return Sample(key, image.offset_data, image.size, caption, filtered=dropped)

    def _json(self, files: Mapping[str, tarfile.TarInfo]) -> dict[str, Any]:
        """The fields that are asked for by filters or as caption; of a sample without any text also for the message."""
        if "json" not in files or not (self._filters or self._field or "txt" not in files):
            return {}
        try:
            found = json.loads(self._text(files["json"], "json"))
        except ValueError as error:
            raise SkippedItem("undecodable_json") from error
        if not isinstance(found, dict):
            raise SkippedItem("undecodable_json")
        return found

    def _caption(self, files: Mapping[str, tarfile.TarInfo], fields: Mapping[str, Any]) -> str:
        if self._field is None and "txt" in files:
            text = self._text(files["txt"], "caption")
        elif isinstance(found := fields.get(self._field or ""), str):
            text = found
            if len(text) > _TEXT_BYTES:
                raise SkippedItem("oversized_caption")
        else:
            self._fields = self._fields or tuple(fields)
            raise SkippedItem("incomplete_sample")
        if not (caption := " ".join(text.split())):
            raise SkippedItem("empty_caption")
        return caption

    def _text(self, member: tarfile.TarInfo, what: str) -> str:
        if member.size > _TEXT_BYTES:
            raise SkippedItem(f"oversized_{what}")
        file = self._tar.extractfile(member)
        try:
            return file.read().decode("utf-8") if file else ""
        except UnicodeDecodeError as error:
            raise SkippedItem(f"undecodable_{what}") from error


def split_of(caption: str, held_out: float = 0.05) -> Split:
    """Split of a picture, from a hash of its caption alone; `held_out` is the share of validation, and of test.

    Pictures of one caption stay together, and further shards move nothing.
    """
    digest = hashlib.sha256(caption.casefold().encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < 1 - 2 * held_out:
        return "train"
    return "validation" if position < 1 - held_out else "test"


def picture_of(data: bytes, config: DataConfig, size: int) -> tuple[Tensor, bool]:
    """A sample's picture as `decode_picture` makes it, and whether it had to be enlarged for that.

    Raises SkippedItem as `decode_picture`, and FilteredItem for one that a filter leaves out.
    """
    filters = [Filter.parse(text) for text in config.filters]
    filters = [item for item in filters if item.field in OF_PICTURE]
    sides: list[int] = []

    def look(width: int, height: int) -> None:
        sides.extend((width, height))
        aspect = max(width, height) / max(1, min(width, height))
        fields = dict(zip(OF_PICTURE, (width, height, aspect), strict=True))
        if reason := next((reason for item in filters if (reason := item.dropped(fields))), ""):
            raise FilteredItem(reason)

    if len(data) > config.max_image_pixels * _BYTES_PER_PIXEL:
        raise SkippedItem("oversized_image")
    image = decode_picture(data, size, config.max_image_pixels, crop=config.crop, look=look)
    return image, min(sides) < size


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Pillow warns from a lower number of pixels on than a configuration may allow. For the thread that waits for those
    which decode: warnings are switched for all threads at once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_picture(
    data: bytes,
    size: int,
    max_pixels: int,
    *,
    crop: Literal["center", "pad"] = "center",
    look: Callable[[int, int], None] = lambda width, height: None,
) -> Tensor:
    """The picture as a square of `size`, uint8 (3, size, size), upright, transparency on white: its middle, or with
    `crop` "pad" all of it on white.

    `look` is given width and height, upright, before anything is decompressed. Raises what it raises, and SkippedItem:
    "oversized_image" above `max_pixels`, "corrupt_image" for bytes that are no whole JPEG, PNG or WebP. Call it within
    `own_pixel_limit`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise SkippedItem("oversized_image")
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            look(*((image.height, image.width) if turned else image.size))
            return _square(image, size, crop)
    except (SkippedItem, FilteredItem, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise SkippedItem("oversized_image") from error
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise SkippedItem("corrupt_image") from error


def _square(image: Image.Image, size: int, crop: Literal["center", "pad"]) -> Tensor:
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    sides, method, rgb = (size, size), Image.Resampling.LANCZOS, upright.convert("RGB")
    square = (
        ImageOps.fit(rgb, sides, method) if crop == "center" else ImageOps.pad(rgb, sides, method, "white")
    )
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).contiguous()
