"""The user's own pictures: webdataset shards, tar files with a picture and a .txt caption a sample.

Shards are indexed from their headers before anything expensive runs, and read at the indexed places; no
member is ever written to disk, so none can escape. Names are split into key and extension by webdataset's own
rule.
"""

import hashlib
import io
import logging
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from artifacts_schema.run_configs import DataConfig
from steps.data.openmoji import Split
from steps.data.shards import expand_shards
from steps.data.source import Picture, well_mixed
from steps.data.tar_members import members_of, open_shard
from steps.files.errors import DataError

logger = logging.getLogger(__name__)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
_FORMATS = ("JPEG", "PNG", "WEBP")
_SHARES = (0.9, 0.05)  # train, validation; the rest is test
_CAPTION_BYTES = 1 << 16  # a caption beyond this is no caption; 77 tokens are read
_BYTES_PER_PIXEL = 8  # no sensible picture file is larger: 16 bits a channel, uncompressed, with alpha


class SkippedItem(Exception):
    """One item cannot be used; the text is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a shard: where its picture's bytes lie, its caption, and why it is skipped."""

    shard: Path
    key: str
    offset: int
    size: int
    caption: str
    problem: str = ""


def check_shards(patterns: Sequence[str], project_root: Path) -> list[Sample]:
    """Index every sample of every shard, in order, reading headers and captions only.

    Raises DataError, naming the shard, for one that is missing, truncated, not a plain tar file or without a
    single sample of picture and caption.
    """
    samples: list[Sample] = []
    for path in expand_shards(patterns, project_root):
        samples += _index(path)
    return samples


def _index(path: Path) -> list[Sample]:
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    with open_shard(path) as tar:
        for member in members_of(path, tar):
            _add(path, members, member)
        samples = [_sample(path, key, files, tar) for key, files in members.items()]
    if all(sample.problem == "incomplete_sample" for sample in samples):
        found = sorted({extension for files in members.values() for extension in files}) or ["nothing"]
        raise DataError(
            f"shard {path}: expected samples of one picture ({', '.join(IMAGE_EXTENSIONS)}) and one .txt "
            f"caption under the same name, found {', '.join(found[:8])}"
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


def _sample(path: Path, key: str, files: Mapping[str, tarfile.TarInfo], tar: tarfile.TarFile) -> Sample:
    image = next((files[extension] for extension in IMAGE_EXTENSIONS if extension in files), None)
    text = files.get(CAPTION_EXTENSION)
    if image is None or text is None:
        return Sample(path, key, 0, 0, "", "incomplete_sample")
    try:
        caption = _caption(text, tar)
    except SkippedItem as problem:
        return Sample(path, key, image.offset_data, image.size, "", str(problem))
    return Sample(path, key, image.offset_data, image.size, caption)


def _caption(member: tarfile.TarInfo, tar: tarfile.TarFile) -> str:
    if member.size > _CAPTION_BYTES:
        raise SkippedItem("oversized_caption")
    file = tar.extractfile(member)
    try:
        caption = " ".join(file.read().decode("utf-8").split()) if file else ""
    except UnicodeDecodeError as error:
        raise SkippedItem("undecodable_caption") from error
    if not caption:
        raise SkippedItem("empty_caption")
    return caption


def split_of(caption: str) -> Split:
    """Split of a picture, from a hash of its caption alone.

    Pictures of one caption stay together, and further shards move nothing.
    """
    digest = hashlib.sha256(caption.casefold().encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < _SHARES[0]:
        return "train"
    return "validation" if position < sum(_SHARES) else "test"


def decode_picture(data: bytes, size: int, max_pixels: int) -> Tensor:
    """The picture's centre square at `size`, uint8 (3, size, size), upright, transparency on white.

    Raises SkippedItem: "oversized_image" above `max_pixels` (seen from its header, before anything is
    decompressed), "corrupt_image" for bytes that are no whole JPEG, PNG or WebP.
    """
    try:
        with warnings.catch_warnings():
            # Pillow has its own, lower threshold; ours is the configuration's and is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise SkippedItem("oversized_image")
                return _square(image, size)
    except (SkippedItem, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise SkippedItem("oversized_image") from error
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise SkippedItem("corrupt_image") from error


def _square(image: Image.Image, size: int) -> Tensor:
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    square = ImageOps.fit(upright.convert("RGB"), (size, size), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).contiguous()


class WebDatasetSource:
    """Pictures of webdataset shards, in the order of the shards; `config.limit` bounds every split."""

    name = "webdataset"
    attribution = ""
    variants = 1

    def __init__(self, config: DataConfig, project_root: Path, image_size: int) -> None:
        """Check and index the shards; see `check_shards` for the errors."""
        self._size = image_size
        self._max_pixels = config.max_image_pixels
        self._max_skipped = config.max_skipped_fraction
        samples = check_shards(config.shards, project_root)
        if config.held_out_from:
            samples = frozen(samples, expand_shards(config.held_out_from, project_root))
        self._samples = _select(samples, config.limit)
        self._skipped: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """See Source."""
        return len(self._samples)

    @property
    def skipped(self) -> Mapping[str, int]:
        """See Source."""
        return dict(sorted(self._skipped.items()))

    def pictures(self) -> Iterator[Picture]:
        """See Source. Captions are known from the index: too many bad ones stop before any decoding."""
        self._skipped.clear()
        for sample in self._samples:
            if sample.problem:
                self._skip(sample, sample.problem)
        current: tuple[Path, io.BufferedReader] | None = None
        try:
            for sample in self._samples:
                if sample.problem:
                    continue
                if current is None or current[0] != sample.shard:
                    if current is not None:
                        current[1].close()
                    current = (sample.shard, sample.shard.open("rb"))
                picture = self._read(sample, current[1])
                if picture is not None:
                    yield picture
        finally:
            if current is not None:
                current[1].close()

    def _read(self, sample: Sample, file: io.BufferedReader) -> Picture | None:
        try:
            if sample.size > self._max_pixels * _BYTES_PER_PIXEL:
                raise SkippedItem("oversized_image")
            file.seek(sample.offset)
            image = decode_picture(file.read(sample.size), self._size, self._max_pixels)
        except SkippedItem as problem:
            self._skip(sample, str(problem))
            return None
        return Picture(split_of(sample.caption), sample.caption, image)

    def _skip(self, sample: Sample, reason: str) -> None:
        self._skipped[reason] += 1
        logger.info("skipped %s of shard %s: %s", sample.key, sample.shard, reason)
        skipped = self._skipped.total()
        if skipped > self._max_skipped * self.total:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self._skipped.items()))
            raise DataError(
                f"expected at most {self._max_skipped:.1%} of {self.total} samples to be unusable, found "
                f"{skipped} already ({counts}), the last one {sample.key} in shard {sample.shard}; repair "
                "the shards or raise data.max_skipped_fraction"
            )


def frozen(samples: list[Sample], shards: Sequence[Path]) -> list[Sample]:
    """Without the pictures of other shards than these that belong to validation or test, so that new shards leave both as
    they are; nothing trains with such a picture either. Raises DataError for a shard that no sample is from.
    """
    unknown = set(shards) - {sample.shard for sample in samples}
    if unknown:
        names = ", ".join(str(path) for path in sorted(unknown))
        raise DataError(f"data.held_out_from names shards that data.shards does not: {names}")
    return [
        sample
        for sample in samples
        if sample.shard in shards or sample.problem or split_of(sample.caption) == "train"
    ]


def _select(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples of each split, well mixed.

    Unusable ones take part, so that their share stays what it is.
    """
    if limit is None:
        return samples
    named: dict[Split, dict[str, Sample]] = {"train": {}, "validation": {}, "test": {}}
    for sample in samples:
        named[split_of(sample.caption or sample.key)][f"{sample.shard.name}/{sample.key}"] = sample
    kept = {id(group[name]) for group in named.values() for name in well_mixed(group, limit)}
    return [sample for sample in samples if id(sample) in kept]
