"""Several drawings of one emoji."""

import torch

from steps.data.openmoji import draw, list_openmoji
from steps.data.variants import draw_variants

SURFER, CLOVER = "1F3C4", "1F340"


def test_one_variant_is_the_picture_as_it_is() -> None:
    assert torch.equal(draw_variants([SURFER, CLOVER], 32, 1), draw([SURFER, CLOVER], 32))


def test_variants_differ_and_come_again() -> None:
    once, again = (draw_variants([SURFER], 32, 4) for _ in range(2))
    assert torch.equal(once, again)
    distances = torch.cdist(once.flatten(1).float(), once.flatten(1).float())
    assert (distances + 1e9 * torch.eye(4)).min() > 100


def test_fewer_variants_are_a_part_of_more() -> None:
    few, more = draw_variants([SURFER, CLOVER], 32, 2), draw_variants([SURFER, CLOVER], 32, 5)
    assert torch.equal(few, more[[0, 1, 5, 6]])


def test_variants_do_not_depend_on_the_company() -> None:
    assert torch.equal(draw_variants([CLOVER], 32, 3), draw_variants([SURFER, CLOVER], 32, 3)[3:])


def test_backgrounds_are_pale() -> None:
    corners = draw_variants([SURFER], 32, 8)[:, :, 0, 0].float()
    assert corners.mean() > 200
    assert len(corners.unique(dim=0)) > 6


def test_borders_are_background() -> None:
    codes = [item.code for item in list_openmoji()[1000:1010]]
    images = draw_variants(codes, 64, 4)
    corner = images[:, :, :1, :1]
    edges = [images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]]
    plain = [(edge == corner[:, :, 0]).all(1).float().mean(1) for edge in edges]
    assert torch.stack(plain).mean() > 0.95


def test_no_pictures() -> None:
    assert draw_variants([], 32, 4).shape == (0, 3, 32, 32)
