"""Whether any training picture is one of those that are measured on: zero-shot means that none is.

Every picture gets a perceptual hash of 64 bits (imagehash's `phash`: signs of the lowest cosine frequencies of the centre
square), which survives another size, another compression, and a cut to the centre square. Two of one picture differ in few bits,
two that have nothing in common in 32 of 64 or so.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.run_configs import DataConfig, StoreConfig
from steps.data.places import identified, is_remote, local_copy, name_of
from steps.data.shards import expand_shards
from steps.data.tar_members import members_of, open_shard
from steps.data.webdataset import IMAGE_EXTENSIONS
from steps.files.errors import EvaluationError
from steps.files.hashes import FileHashes
from steps.files.progress import Progress

MOST_BITS = 6
"""Of 64. Two of a million and of 40,000 unlike pictures would come that near about once, were their bits independent."""
_SIDE = 128  # a JPEG is decoded at the smallest scale that has as much
_TOGETHER = 256
_MOST_PIXELS = DataConfig().max_image_pixels


@dataclass(frozen=True)
class Match:
    """A training picture (`<shard>/<file>`) that is like one of the others, and in how many of 64 bits they differ."""

    training: str
    other: str
    bits: int


@dataclass(frozen=True)
class ZeroShot:
    """What was looked at, what could not be read, and what was found: every pair within `most_bits`, nearest first."""

    training: int
    others: int
    unreadable: int
    most_bits: int
    matches: tuple[Match, ...]


def perceptual_hash(data: bytes) -> int:
    """Of a picture file's centre square. Raises OSError or ValueError for bytes that are no picture, or a far too large one."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.draft("RGB", (_SIDE, _SIDE))
        upright = ImageOps.exif_transpose(image).convert("RGB")
    square = ImageOps.fit(upright, (_SIDE, _SIDE), method=Image.Resampling.LANCZOS)
    return int(str(imagehash.phash(square)), 16)


def check_zero_shot(
    config: SnapFusionConfig, root: Path, others: Path, *, most_bits: int = MOST_BITS, progress: Progress
) -> ZeroShot:
    """Every picture of the shards of `config`, wherever they lie, against every one in the folder `others` and below.

    Raises DataError for shards that cannot be read, EvaluationError for a folder without pictures.
    """
    files = sorted(path for path in others.rglob("*") if path.suffix.lower()[1:] in IMAGE_EXTENSIONS)
    if not files:
        raise EvaluationError(
            f"expected pictures ({', '.join(IMAGE_EXTENSIONS)}) in the folder {others}, found none"
        )
    places = expand_shards(config.data.shards, root)
    progress.start("hashing pictures, by shards", len(places) + 1)
    matches: list[Match] = []
    training, unreadable = 0, 0
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow, which decodes without Python's lock, warns from fewer pixels on; filters are those of all threads.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        own = list(pool.map(lambda path: _hash_or_none(path.read_bytes), files))
        names = [
            str(path.relative_to(others)) for path, found in zip(files, own, strict=True) if found is not None
        ]
        hashes = np.array([found for found in own if found is not None], dtype=np.uint64)
        unreadable += len(files) - len(names)
        progress.update(1)
        for done, place in enumerate(places, start=2):
            for together in _batches(_pictures(place, config.store)):
                found_here = pool.map(lambda item: _hash_or_none(lambda: item[1]), together)
                for (key, _), found in zip(together, found_here, strict=True):
                    training += 1
                    unreadable += found is None
                    for number, bits in _near(found, hashes, most_bits):
                        matches.append(Match(f"{name_of(place)}/{key}", names[number], bits))
            progress.update(done)
    progress.close()
    matches.sort(key=lambda match: (match.bits, match.training, match.other))
    return ZeroShot(training, len(files), unreadable, most_bits, tuple(matches))


def _pictures(place: str, store: StoreConfig) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every picture of a shard; a remote one is copied for as long as it is read."""
    with TemporaryDirectory() as folder, _here(place, Path(folder), store) as shard, open_shard(shard) as tar:
        for member in members_of(shard, tar):
            if member.isreg() and member.name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS:
                file = tar.extractfile(member)
                yield member.name, file.read() if file else b""


def _here(place: str, folder: Path, store: StoreConfig) -> AbstractContextManager[Path]:
    if not is_remote(place):
        return nullcontext(Path(place))
    (known,) = identified([place], FileHashes(folder / "none"), store)
    return local_copy(place, known, folder, store)


def _batches(items: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """So many that every core is busy, and few enough to lie in memory."""
    while together := list(islice(items, _TOGETHER)):
        yield together


def _near(found: int | None, hashes: NDArray[np.uint64], most_bits: int) -> Iterator[tuple[int, int]]:
    """Places of the hashes that differ in at most `most_bits` from one, with how many."""
    if found is None:
        return
    bits = np.bitwise_count(hashes ^ np.uint64(found))
    for place in np.flatnonzero(bits <= most_bits):
        yield int(place), int(bits[place])


def _hash_or_none(read: Callable[[], bytes]) -> int | None:
    """None for what cannot be read: it is counted."""
    try:
        return perceptual_hash(read())
    except MemoryError:
        raise
    except Exception:  # damaged bytes make decoders raise nearly anything
        return None
