"""Sources of made-up pictures."""

from typing import Any

import torch
from torch import Tensor

from steps.data.source import Picture

IMAGE_SIZE = 32


class ListSource:
    """A source of given pictures."""

    name = "list"
    attribution = "nobody"

    def __init__(self, pictures: list[Picture], variants: int = 1) -> None:
        self._pictures = pictures
        self.variants = variants
        self.total = len(pictures)

    def pictures(self) -> Any:
        """See Source."""
        return iter(self._pictures)


def noise_image(seed: int) -> Tensor:
    """Random uint8 picture (3, IMAGE_SIZE, IMAGE_SIZE)."""
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
