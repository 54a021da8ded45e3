"""The pictures and captions the embedded models are trained on, in memory."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from steps.data.openmoji import Split, list_openmoji
from steps.data.variants import draw_variants
from steps.models.clip import tokenize
from steps.training.batch import Batch
from steps.training.randomness import keyed_integers

_SHIFT = 4  # pixels a picture is moved at most while training, beside its variants


@dataclass(frozen=True)
class Pictures:
    """One split: uint8 pictures (n, 3, size, size), the captions and their token ids (n, 77).

    Every caption has `variants` pictures, one after the other.
    """

    images: Tensor
    captions: list[str]
    tokens: Tensor
    variants: int = 1

    def spread(self, count: int) -> "Pictures":
        """One picture each of at most `count` captions, evenly spread, another variant for every next caption."""
        total = len(self.captions) // self.variants
        numbers = torch.linspace(0, total - 1, min(count, total)).long()
        rows = numbers * self.variants + numbers % self.variants
        return Pictures(self.images[rows], [self.captions[row] for row in rows.tolist()], self.tokens[rows])


def load_pictures(
    split: Split, *, size: int, tokenizer: CLIPTokenizer, variants: int = 1, cache: Path | None = None
) -> Pictures:
    """Draw one split of OpenMoji, some two seconds a thousand pictures, or read it from the folder `cache`."""
    items = [item for item in list_openmoji() if item.split == split]
    captions = [item.caption for item in items for _ in range(variants)]
    kept = cache / f"{split}-{size}-{variants}.safetensors" if cache else None
    if kept is not None and kept.is_file():
        images = load_file(kept)["images"]
    else:
        images = draw_variants([item.code for item in items], size, variants)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(".tmp")
            save_file({"images": images}, draft)
            draft.replace(kept)
    return Pictures(images, captions, tokenize(tokenizer, captions), variants)


def normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def shifted(images: Tensor, batch: Batch) -> Tensor:
    """Pictures in [-1, 1] moved by up to four pixels, their edge repeated, keyed by sample and iteration."""
    size = images.shape[-1]
    padded = functional.pad(images, (_SHIFT,) * 4, mode="replicate")
    across, down = (
        keyed_integers(
            0, 2 * _SHIFT + 1, seed=batch.seed, name=name, iteration=batch.iteration, indices=batch.indices
        ).tolist()
        for name in ("dx", "dy")
    )
    return torch.stack(
        [padded[i, :, down[i] : down[i] + size, across[i] : across[i] + size] for i in range(len(images))]
    )
