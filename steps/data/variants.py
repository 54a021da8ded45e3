"""Several drawings of one emoji, so that a caption has a distribution of pictures and a seed has something to choose.

A variant is moved, made smaller, tilted and put on a pale background, all of it as vectors. Nothing is mirrored:
captions tell left from right. What variant k of a picture looks like depends on its code and k alone, so that fewer
variants are a part of more.
"""

import colorsys
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from steps.data.openmoji import read_svg, render
from steps.training.randomness import spawn

_CANVAS = 72.0  # OpenMoji's own units
_SMALLEST = 0.8
_SHIFT = 3.0  # units, and what a smaller picture leaves free: nothing is cut off that was not near the edge
_TILT = 12.0  # degrees
_LIGHTEST, _DARKEST, _SATURATION = 1.0, 0.86, 0.8  # of the background


def draw_variants(codes: Sequence[str], size: int, variants: int) -> Tensor:
    """uint8 (n * variants, 3, size, size); picture i has rows i * variants to (i + 1) * variants - 1.

    One variant is the picture as it is.
    """
    rows = [_draw_one(code, size, number) for code in codes for number in _numbers(variants)]
    return torch.stack(rows) if rows else torch.empty((0, 3, size, size), dtype=torch.uint8)


def _numbers(variants: int) -> range:
    return range(1) if variants == 1 else range(1, variants + 1)


def _draw_one(code: str, size: int, number: int) -> Tensor:
    """Variant `number`; 0 is the plain picture."""
    svg = read_svg(code)
    if number == 0:
        return render(svg, size)
    generator = torch.Generator().manual_seed(spawn(number, "variant", code))
    smaller, across, down, tilt, hue, light = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    scale = 1.0 - smaller * (1.0 - _SMALLEST)
    centre = _CANVAS / 2
    free = _SHIFT + centre * (1.0 - scale)
    x, y = (centre + free * (2 * draw - 1) for draw in (across, down))
    transform = (
        f"translate({x:.3f} {y:.3f}) rotate({_TILT * (2 * tilt - 1):.3f}) scale({scale:.4f}) "
        f"translate({-centre:g} {-centre:g})"
    )
    inner = re.sub(r"<\?xml.*?\?>", "", svg)
    return render(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_CANVAS:g} {_CANVAS:g}">'
        f'<g transform="{transform}">{inner}</g></svg>',
        size,
        background=_pale(hue, light),
    )


def _pale(hue: float, light: float) -> str:
    lightness = _DARKEST + light * (_LIGHTEST - _DARKEST)
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, _SATURATION))
    return f"#{red:02x}{green:02x}{blue:02x}"
