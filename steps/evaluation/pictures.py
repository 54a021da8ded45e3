"""Grids of pictures as PNG bytes."""

import io

import torch
from PIL import Image
from torch import Tensor


def png(image: Tensor) -> bytes:
    """PNG bytes of one uint8 picture (3, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def grid(images: Tensor, *, columns: int, gap: int = 2) -> Tensor:
    """uint8 (n, 3, H, W) laid out in rows of `columns` on white, (3, height, width)."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8
    )
    for index in range(count):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = images[index]
    return canvas
