"""What protocols are frozen from: the embedded data's splits, or captions and pictures of a user's own."""

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from artifacts_schema.base import Frozen
from artifacts_schema.protocol import ProtocolPicture
from artifacts_schema.ranges import Count
from artifacts_schema.run_configs import DataConfig
from steps.data.groups import picture_group
from steps.data.openmoji import Captioned, draw, list_openmoji
from steps.data.source import well_mixed
from steps.data.webdataset import SkippedItem, decode_picture
from steps.evaluation.protocol import pixels_sha256
from steps.files.errors import EvaluationError

Role = Literal["validation", "test"]
PICTURES: dict[Role, int] = {"validation": 512, "test": 2048}
"""Drawn of each variant for a claim."""
SIZE = 64  # of the embedded base's pictures
SEEN = 240  # captions of other categories, as many as of people
_PERSON = re.compile(r"(?:man|woman|person) .+")


@dataclass(frozen=True)
class Items:
    """Named and captioned pictures, uint8 (n, 3, size, size)."""

    names: list[str]
    captions: list[str]
    images: Tensor

    def frozen(self) -> tuple[ProtocolPicture, ...]:
        """As a protocol names them."""
        rows = zip(self.names, self.captions, self.images, strict=True)
        return tuple(
            ProtocolPicture(name=name, caption=text, sha256=pixels_sha256(image))
            for name, text, image in rows
        )


@dataclass(frozen=True)
class Draft:
    """A protocol without its measurements."""

    role: Role
    subject: str
    source: Literal["openmoji", "folder", "coco"]
    image_size: int
    pictures: int
    held_out: Items
    reference: Items
    seen: Items
    novel: Items


def openmoji_drafts() -> list[Draft]:
    """The embedded data's: held-out people; distances are measured to the other people, held out nowhere."""
    everything = list_openmoji()
    train = [item for item in everything if item.split == "train"]
    people = [item for item in train if _PERSON.fullmatch(picture_group(item.caption))]
    chosen = set(
        well_mixed((item.code for item in train if not _PERSON.fullmatch(picture_group(item.caption))), SEEN)
    )
    seen = _drawn([item for item in train if item.code in chosen])
    novel = _drawn([item for item in everything if item.split == "novel"])
    reference = _drawn(people)
    return [
        Draft(
            role=role,
            subject="people: a person and an activity that were never seen together, every word of it known",
            source="openmoji",
            image_size=SIZE,
            pictures=count,
            held_out=_drawn([item for item in everything if item.split == role]),
            reference=reference,
            seen=seen,
            novel=novel,
        )
        for role, count in PICTURES.items()
    ]


def _drawn(items: Sequence[Captioned]) -> Items:
    codes = [item.code for item in items]
    return Items(codes, [item.caption for item in items], draw(codes, SIZE))


class CaptionSource(Frozen):
    """A caption with the files of its pictures."""

    text: str = Field(min_length=1)
    pictures: tuple[str, ...] = Field(min_length=1)


class ProtocolSource(Frozen):
    """One protocol of a user's own."""

    pictures: Count
    captions: tuple[CaptionSource, ...] = Field(min_length=3)
    reference: tuple[CaptionSource, ...] = ()
    seen: tuple[CaptionSource, ...] = ()
    novel: tuple[CaptionSource, ...] = ()


class Source(Frozen):
    """The file that a user writes."""

    subject: str = Field(min_length=1)
    folder: str = "."
    train_captions: str | None = None
    validation: ProtocolSource
    test: ProtocolSource

    @classmethod
    def read(cls, path: Path) -> Self:
        """TOML or JSON, by the file's ending. Raises EvaluationError with every mistake."""
        try:
            text = path.read_text(encoding="utf-8")
            payload = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
            return cls.model_validate(payload)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()
            ]
            raise EvaluationError(f"{path} is no source of protocols:\n  " + "\n  ".join(lines)) from error
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path} cannot be read: {error}") from error


def own_drafts(path: Path, image_size: int) -> list[Draft]:
    """A user's own protocols. Raises EvaluationError for captions that are there twice, or on both sides, words that
    training lacks, and pictures that cannot be read.
    """
    source = Source.read(path)
    parts: dict[Role, ProtocolSource] = {"validation": source.validation, "test": source.test}
    _check_captions(source, parts, path)
    folder = path.parent / source.folder
    return [
        Draft(
            role=role,
            subject=source.subject,
            source="folder",
            image_size=image_size,
            pictures=part.pictures,
            held_out=_read(part.captions, folder, image_size),
            reference=_read(part.reference, folder, image_size),
            seen=_read(part.seen, folder, image_size),
            novel=_read(part.novel, folder, image_size),
        )
        for role, part in parts.items()
    ]


def _check_captions(source: Source, parts: dict[Role, ProtocolSource], path: Path) -> None:
    held_out = {role: [item.text for item in part.captions] for role, part in parts.items()}
    for role, texts in held_out.items():
        if twice := sorted({text for text in texts if texts.count(text) > 1}):
            raise EvaluationError(
                f"{path}: {role}.captions has {_named(twice)} more than once; name a caption once, with all its pictures"
            )
    if both := sorted(set(held_out["validation"]) & set(held_out["test"])):
        raise EvaluationError(
            f"{path}: {_named(both)} is in validation and in test; what decides must not be measured on"
        )
    if source.train_captions is None:
        return
    try:
        known = set(_words((path.parent / source.train_captions).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: train_captions cannot be read: {error}") from error
    unknown = {word for texts in held_out.values() for text in texts for word in _words(text)} - known
    if unknown:
        raise EvaluationError(
            f"{path}: the words {_named(sorted(unknown))} are in no training caption, so that no model can know them; "
            "move their captions to `novel`"
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _named(texts: Sequence[str]) -> str:
    return ", ".join(repr(text) for text in texts[:5]) + (" and others" if len(texts) > 5 else "")


def _read(captions: Iterable[CaptionSource], folder: Path, size: int) -> Items:
    """The pictures, cut and resized as training pictures are."""
    names, texts, images = [], [], []
    for item in captions:
        for name in item.pictures:
            names.append(name)
            texts.append(item.text)
            images.append(_picture(folder / name, size))
    return Items(
        names, texts, torch.stack(images) if images else torch.empty((0, 3, size, size), dtype=torch.uint8)
    )


def _picture(path: Path, size: int) -> Tensor:
    try:
        return decode_picture(path.read_bytes(), size, DataConfig().max_image_pixels)
    except (OSError, SkippedItem) as error:
        raise EvaluationError(f"the picture {path} cannot be read: {error}") from error
