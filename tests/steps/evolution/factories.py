"""Data and a scorer without any files."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steps.training.randomness import keyed_normal, keyed_uniform


class TinyData:
    """Twelve samples per split that fit `tests.factories.tiny_base`."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self._latents = torch.randn(12, 4, 16, 16, generator=generator)
        self._text = torch.randn(12, 7, 12, generator=generator)

    @property
    def empty_embedding(self) -> Tensor:
        """(1, 7, 12)."""
        return torch.zeros(1, 7, 12)

    def size(self, split: str) -> int:
        """Twelve."""
        return len(self._latents)

    def order(self, split: str) -> int:
        """Twelve, in any order."""
        return len(self._latents)

    def captions(self, split: str) -> list[str]:
        """Numbered captions, the last two of one picture group."""
        return [f"{split} {index}" for index in range(11)] + [f"{split} 10 dark skin tone"]

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        """(n, 7, 12), each split its own."""
        return self._text[indices] + (0.0 if split == "train" else 0.5)

    def training_embeddings(
        self, split: str, indices: Tensor, *, seed: int, iteration: int, drop_probability: float
    ) -> Tensor:
        """(n, 7, 12), some of them of the empty caption."""
        draws = keyed_uniform(0.0, 1.0, seed=seed, name="drop", iteration=iteration, indices=indices)
        return torch.where((draws < drop_probability)[:, None, None], 0.0, self._text[indices])

    def latents(self, split: str, indices: Tensor, *, seed: int, iteration: int) -> Tensor:
        """(n, 4, 16, 16) with a little keyed noise."""
        noise = keyed_normal((4, 16, 16), seed=seed, name="vae", iteration=iteration, indices=indices)
        return self._latents[indices] + 0.1 * noise


class BrightnessScorer:
    """The mean brightness of a picture in place of its likeness to a caption; counts its pictures."""

    def __init__(self) -> None:
        self.pictures = 0

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(n,) in [0, 1]."""
        assert len(images) == len(captions)
        self.pictures += len(images)
        return images.float().mean((1, 2, 3)) / 255.0
