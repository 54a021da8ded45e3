"""Pictures as PNG bytes, in grids and in other sizes."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def png(image: Tensor) -> bytes:
    """PNG bytes of one uint8 picture (3, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (n, 3, size, size) of uint8 (n, 3, H, H), by Pillow's Lanczos filter, as real pictures are brought to a size."""
    if images.shape[-1] == size:
        return images
    found = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        small = np.array(picture.resize((size, size), Image.Resampling.LANCZOS))
        found[number] = torch.from_numpy(small).permute(2, 0, 1)
    return found


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
