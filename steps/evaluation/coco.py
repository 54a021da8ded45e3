"""COCO protocols (P section 5): captions and pictures of MS-COCO's own files, chosen by a seed.

One caption a picture, since the paper speaks of image-caption pairs; so the reference are the pairs' own pictures. Fewer pairs
of a seed lie among more of them: the 6,000 of the ablations among the 30,000 of the main curve. See docs/adr/0040.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from artifacts_schema.run_configs import DataConfig
from steps.data.webdataset import SkippedItem, decode_picture
from steps.evaluation.freeze_sources import Draft, Items, Role
from steps.files.errors import EvaluationError

logger = logging.getLogger(__name__)
SIZE = 256
"""Sides of the pictures that are measured; BK-SDM, which measures with the same CLIP model, brings 512 to 256."""
PICTURES: dict[Role, int] = {"validation": 2000, "test": 30_000}
"""P section 3.1 scores with 2,000 pictures; its main curve is of 30,000."""
MOST_UNUSABLE = 0.01  # of the pairs, as data.max_skipped_fraction
_NAMED = 5


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: int


class _Image(_Entry):
    file_name: str


class _Annotation(_Entry):
    image_id: int
    caption: str


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...]


@dataclass(frozen=True)
class Coco:
    """A captions file of MS-COCO and the folder of its pictures: file name and captions by the picture's id."""

    path: Path
    folder: Path
    files: dict[int, str]
    captions: dict[int, list[tuple[int, str]]]  # with the caption's own id

    @classmethod
    def read(cls, path: Path, folder: Path) -> "Coco":
        """Raises EvaluationError for a file that is none, and for ids and names that are there twice or lead nowhere."""
        try:
            found = _File.model_validate_json(path.read_bytes())
        except OSError as error:
            raise EvaluationError(f"the captions {path} cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise EvaluationError(
                f"{path} is no captions file of MS-COCO (captions_val2014.json): {where}: {first['msg']}"
            ) from error
        _once(path, "images holds the id", (image.id for image in found.images))
        _once(path, "images holds the file", (image.file_name for image in found.images))
        _once(path, "annotations holds the id", (item.id for item in found.annotations))
        files = {image.id: image.file_name for image in found.images}
        if outside := [name for name in files.values() if Path(name).name != name]:
            raise EvaluationError(f"{path}: expected names of files in one folder, found {outside[0]!r}")
        captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for item in found.annotations:
            if item.image_id not in files:
                raise EvaluationError(
                    f"{path}: the caption {item.id} is of the picture {item.image_id}, which images lacks"
                )
            if text := " ".join(item.caption.split()):
                captions[item.image_id].append((item.id, text))
        if not folder.is_dir():
            raise EvaluationError(f"expected the pictures of {path} in {folder}, which is not a folder")
        return cls(path, folder, files, dict(captions))


def _once(path: Path, what: str, values: Iterable[object]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        named = ", ".join(map(str, twice[:_NAMED]))
        raise EvaluationError(
            f"{path}: {what} {named} more than once ({len(twice)} such): which one counts cannot be told; take MS-COCO's "
            "own file, or join files without what they share"
        )


@dataclass
class _Taken:
    """What one protocol has, so that another has none of it."""

    images: set[int] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)


def coco_drafts(
    test: Coco, validation: Coco, counts: dict[Role, int] = PICTURES, *, seed: int = 0, size: int = SIZE
) -> list[Draft]:
    """Drafts of both protocols; `validation` may be the same file, of which it takes other pictures than `test`.

    Raises EvaluationError where there are too few pairs, or too many of their pictures are missing or cannot be read.
    """
    taken, drafts = _Taken(), []
    sides: tuple[tuple[Role, Coco], ...] = (("test", test), ("validation", validation))
    for role, coco in sides:
        items = _items(coco, role, counts[role], taken, seed=seed, size=size)
        drafts.append(
            Draft(
                role=role,
                subject=f"MS-COCO: {len(items.names)} pictures of {coco.path.name} by seed {seed}, with one caption each",
                source="coco",
                image_size=size,
                pictures=len(items.names),
                held_out=items,
                reference=_none(size),
                seen=_none(size),
                novel=_none(size),
            )
        )
    return drafts[::-1]


def _items(coco: Coco, role: Role, count: int, taken: _Taken, *, seed: int, size: int) -> Items:
    names: list[str] = []
    texts: list[str] = []
    unusable: list[str] = []
    images = torch.empty((count, 3, size, size), dtype=torch.uint8)
    for name, text in _pairs(coco, taken, seed):
        try:
            images[len(names)] = _picture(coco.folder / name, size)
        except SkippedItem as problem:
            unusable.append(f"{name} ({problem})")
            _check_unusable(coco, unusable, count)
            continue
        names.append(name)
        texts.append(text)
        taken.texts.add(text)
        if len(names) == count:
            break
    if len(names) < count:
        raise EvaluationError(
            f"{role}: expected {count} pairs, {coco.path} has {len(names)} with a picture and a caption that no other pair has"
            f"{'' if role == 'test' else ' and test left over'}; ask for fewer (--captions, --validation-captions)"
            f"{'' if role == 'test' else ', or name another file with --validation-coco'}"
        )
    if unusable:
        logger.warning("%s: left out and replaced %d pictures: %s", role, len(unusable), ", ".join(unusable))
    return Items(names, texts, images)


def _pairs(coco: Coco, taken: _Taken, seed: int) -> Iterator[tuple[str, str]]:
    """File and caption of one picture after the other, in the seed's order; a caption that is taken gives way to the next."""
    for image in sorted(coco.captions, key=lambda number: _order(seed, number)):
        if image in taken.images:
            continue
        captions = sorted(coco.captions[image], key=lambda item: _order(seed, item[0]))
        text = next((text for _, text in captions if text not in taken.texts), None)
        if text is not None:
            taken.images.add(image)
            yield coco.files[image], text


def _order(seed: int, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{number}".encode()).digest()


def _picture(path: Path, size: int) -> Tensor:
    """The centre square, as training pictures are cut. Raises SkippedItem."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SkippedItem("missing" if isinstance(error, FileNotFoundError) else "unreadable") from None
    return decode_picture(data, size, DataConfig().max_image_pixels)


def _check_unusable(coco: Coco, unusable: list[str], count: int) -> None:
    if len(unusable) <= MOST_UNUSABLE * count:
        return
    raise EvaluationError(
        f"more than {MOST_UNUSABLE:.0%} of {count} pictures of {coco.path} are missing in {coco.folder} or cannot be read: "
        f"{', '.join(unusable[:_NAMED])}; name the folder that holds them all"
    )


def _none(size: int) -> Items:
    return Items([], [], torch.empty((0, 3, size, size), dtype=torch.uint8))
