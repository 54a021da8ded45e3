"""What pictures are drawn for and held against: captions, their text embeddings, and real pictures.

Either a frozen protocol's, whatever the model was trained on, or those of a split of the run's own data.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts_schema.data import SplitName
from artifacts_schema.protocol import Part, ProtocolPicture, ProtocolRecord
from steps.data.groups import picture_group
from steps.evaluation.protocol import pictures_of, read_protocol
from steps.files.errors import EvaluationError
from steps.models.base import BaseModel, encode_captions
from steps.training.randomness import epoch_indices, spawn

NOISE_SEED = 20230606  # fixed: every variant of every run draws the same noise
RETRIEVAL_CANDIDATES = 100


def shuffled(texts: list[str], seed: int) -> list[str]:
    """The captions that a picture must be told from: the first hundred after shuffling."""
    order = epoch_indices(samples=len(texts), start=0, count=len(texts), seed=spawn(seed, "retrieval"))
    return [texts[i] for i in order.tolist()][:RETRIEVAL_CANDIDATES]


def halves(captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the reference, of what real pictures are measured against, and of the real pictures measured.

    Every other picture of a caption, where it has several; else every other group of captions.
    """
    seen: dict[str, int] = {}
    turn = [seen.setdefault(caption, 0) % 2 for caption in captions]
    for index, caption in enumerate(captions):
        turn[index] = seen[caption] % 2
        seen[caption] += 1
    if min(seen.values()) >= 2:
        even, odd = (torch.tensor([i for i, t in enumerate(turn) if t == side]) for side in (0, 1))
        return odd, odd, even
    names = [picture_group(caption) for caption in captions]
    groups = {group: place for place, group in enumerate(dict.fromkeys(names))}
    side = torch.tensor([groups[group] % 2 for group in names])
    return torch.arange(len(captions)), (side == 1).nonzero()[:, 0], (side == 0).nonzero()[:, 0]


class SplitSubject:
    """A split of the run's own data: no protocol, so nothing beyond the run can be compared with it."""

    protocol: ProtocolRecord | None = None
    seed = NOISE_SEED

    def __init__(self, data: Any, split: SplitName) -> None:
        self.data, self.split = data, split
        self.captions: list[str] = data.captions(split)  # of the real pictures
        self.texts = list(dict.fromkeys(self.captions))
        self.candidates = shuffled(self.texts, self.seed)

    def images(self) -> Tensor:
        """uint8 (n, 3, H, W), one for each of `captions`."""
        found: Tensor = self.data.images(self.split, torch.arange(len(self.captions)))
        return found

    def reference(self) -> tuple[Tensor, list[str]] | None:
        """What distances are measured to, with captions; None where the real pictures themselves are."""
        return None

    def embeddings(self, base: BaseModel, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """(n, tokens, width) of these `texts`, and the empty caption's (1, tokens, width)."""
        first = {caption: index for index, caption in reversed(list(enumerate(self.captions)))}
        rows = torch.tensor([first[self.texts[i]] for i in chosen])
        return self.data.embeddings(self.split, rows), self.data.empty_embedding


class FrozenSubject:
    """One part of a frozen protocol."""

    def __init__(self, protocol: ProtocolRecord, part: Part, folder: Path) -> None:
        self.protocol, self.part, self.folder = protocol, part, folder
        self.seed = protocol.noise_seed
        self.pictures = protocol.real if part == "held_out" else getattr(protocol, part)
        if not self.pictures:
            raise EvaluationError(f"protocol {protocol.name!r} has no {part!r} captions")
        self.captions = [item.caption for item in self.pictures]
        held_out = part == "held_out"
        self.texts = list(protocol.captions) if held_out else list(dict.fromkeys(self.captions))
        self.candidates = list(protocol.retrieval) if held_out else shuffled(self.texts, self.seed)
        self._encoded: tuple[Tensor, Tensor] | None = None

    def images(self) -> Tensor:
        """See SplitSubject."""
        return pictures_of(self.protocol, self.pictures, self.folder)

    def reference(self) -> tuple[Tensor, list[str]] | None:
        """See SplitSubject."""
        if self.part != "held_out" or not self.protocol.reference:
            return None
        items = self.protocol.reference
        return pictures_of(self.protocol, items, self.folder), [item.caption for item in items]

    def embeddings(self, base: BaseModel, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """See SplitSubject; encoded here, so that the run's own data have no say in it."""
        if self._encoded is None:
            encoder = base.text_encoder
            self._encoded = (
                encode_captions(base.tokenizer, encoder, self.texts),
                encode_captions(base.tokenizer, encoder, [""]),
            )
        texts, empty = self._encoded
        return texts[chosen], empty

    @cached_property
    def calibration(self) -> list[ProtocolPicture]:
        """The pictures that an environment is measured with."""
        known = {item.name: item for item in (*self.protocol.real, *self.protocol.reference)}
        return [known[item.name] for item in self.protocol.calibration]


Subject = SplitSubject | FrozenSubject


def subject_of(inputs: Any, split: SplitName, part: Part = "held_out") -> Subject:
    """What the run measures a split on: the frozen protocol of that name, if it has protocols, else the data's split."""
    folder: Path | None = inputs.protocols
    if folder is None:
        return SplitSubject(inputs.data, split)
    return FrozenSubject(read_protocol(folder / f"{split}.json"), part, folder)


def reference_of(subject: Subject) -> tuple[Tensor, list[str]]:
    """The pictures that distances are measured to, uint8 (m, 3, H, W), and their captions."""
    apart = subject.reference()
    if apart is not None:
        return apart
    images, (reference, _, _) = subject.images(), halves(subject.captions)
    return images[reference], [subject.captions[i] for i in reference.tolist()]
