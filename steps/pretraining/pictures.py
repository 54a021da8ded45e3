"""The pictures and captions the embedded models are trained on, in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from steps.data.openmoji import Split, draw, list_openmoji
from steps.models.clip import tokenize
from steps.training.batch import Batch
from steps.training.randomness import keyed_integers

_SHIFT = 4  # pixels a picture is moved at most; captions stay true, unlike with mirroring ("right arrow")


@dataclass(frozen=True)
class Pictures:
    """One split: uint8 pictures (n, 3, size, size), captions, and their token ids (n, 77)."""

    images: Tensor
    captions: list[str]
    tokens: Tensor


def load_pictures(split: Split, *, size: int, tokenizer: CLIPTokenizer) -> Pictures:
    """Draw one split of OpenMoji; about four seconds for all of it."""
    items = [item for item in list_openmoji() if item.split == split]
    captions = [item.caption for item in items]
    return Pictures(draw([item.code for item in items], size), captions, tokenize(tokenizer, captions))


def normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def shifted(images: Tensor, batch: Batch) -> Tensor:
    """Pictures in [-1, 1] moved by up to four pixels on white, keyed by sample and iteration."""
    size = images.shape[-1]
    padded = functional.pad(images, (_SHIFT,) * 4, value=1.0)
    across, down = (
        keyed_integers(
            0, 2 * _SHIFT + 1, seed=batch.seed, name=name, iteration=batch.iteration, indices=batch.indices
        ).tolist()
        for name in ("dx", "dy")
    )
    return torch.stack(
        [padded[i, :, down[i] : down[i] + size, across[i] : across[i] + size] for i in range(len(images))]
    )
