"""The half-width decoder: a quarter of the weights, cut out of the full one along its structure."""

from pathlib import Path

import pytest
import torch

from steps.diffusion.small_decoder import SmallDecoder, small_widths, with_decoder
from steps.errors import ConfigError
from tests.steps.diffusion.tiny import tiny_vae

Z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 16), (12, 36)])
@torch.no_grad()
def test_keeping_every_channel_keeps_the_decoder(widths: tuple[int, ...]) -> None:
    vae = tiny_vae(widths)
    same = SmallDecoder.cut_from(vae, width_fraction=1.0)
    torch.testing.assert_close(same.decode(Z).sample, vae.decode(Z).sample)


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 16), (12, 36)])
@torch.no_grad()
def test_channels_that_carry_nothing_are_cut_without_a_trace(widths: tuple[int, ...]) -> None:
    """A decoder of half width, spread over the full width with silent channels between, is found again.

    The statistics of a norm group would change with silent channels in it, so every group is silent or full.
    """
    vae = tiny_vae(widths, norm_num_groups=4)
    small = SmallDecoder.cut_from(vae, width_fraction=0.5)
    assert small.config.block_out_channels == tuple(width // 2 for width in widths)
    full = sum(p.numel() for p in vae.decoder.parameters())
    assert full / sum(p.numel() for p in small.decoder.parameters()) == pytest.approx(4.0, rel=0.1)


@torch.no_grad()
def test_the_channels_of_largest_norm_stay() -> None:
    vae = tiny_vae((8, 16), norm_num_groups=4)
    hidden = vae.decoder.up_blocks[0].resnets[0].conv1
    # Of each norm group of four channels the first two are made large.
    large = torch.tensor([0, 1, 4, 5, 8, 9, 12, 13])
    hidden.weight[large] *= 100
    small = SmallDecoder.cut_from(vae, width_fraction=0.5)
    kept = small.decoder.up_blocks[0].resnets[0].conv1
    assert torch.equal(kept.bias, hidden.bias[large])
    assert torch.equal(small.decoder.up_blocks[0].resnets[0].norm2.weight, torch.ones(8))


def test_every_cut_weight_comes_from_the_full_decoder() -> None:
    vae = tiny_vae((8, 16, 16))
    full = set(torch.cat([p.detach().flatten() for p in vae.parameters()]).tolist())
    small = SmallDecoder.cut_from(vae, width_fraction=0.5)
    for name, parameter in small.named_parameters():
        assert set(parameter.detach().flatten().tolist()) <= full, name


@pytest.mark.parametrize(
    ("widths", "groups", "expected"),
    [
        ((128, 256, 512, 512), 32, ((64, 128, 256, 256), 32)),
        ((32, 64, 64), 8, ((16, 32, 32), 8)),
        ((32, 64), 32, ((16, 32), 16)),  # 32 groups do not divide 16 channels
        ((12, 36), 12, ((6, 18), 6)),
        ((10, 15), 5, ((5, 7), 1)),
    ],
)
def test_groups_that_do_not_divide_half_the_width_become_fewer(
    widths: tuple[int, ...], groups: int, expected: tuple[tuple[int, ...], int]
) -> None:
    assert small_widths(widths, 0.5, norm_num_groups=groups) == expected


def test_a_width_that_vanishes_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no channel"):
        small_widths((8, 16), 0.1, norm_num_groups=4)


def test_stable_diffusions_decoder_has_its_known_size() -> None:
    with torch.device("meta"):
        small = SmallDecoder(
            block_out_channels=(64, 128, 256, 256),
            layers_per_block=2,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=32,
        )
    assert sum(p.numel() for p in small.decoder.parameters()) == 12_387_459


@torch.no_grad()
def test_saves_and_loads(tmp_path: Path) -> None:
    small = SmallDecoder.cut_from(tiny_vae(), width_fraction=0.5).eval()
    small.save_pretrained(tmp_path)
    again = SmallDecoder.from_pretrained(tmp_path)
    assert torch.equal(again.decode(Z).sample, small.decode(Z).sample)
    assert again.config.scaling_factor == 0.5


@torch.no_grad()
def test_swapping_leaves_the_original_alone() -> None:
    vae = tiny_vae()
    before = vae.decode(Z).sample
    small = SmallDecoder.cut_from(vae, width_fraction=0.5).eval()
    swapped = with_decoder(vae, small)
    assert torch.equal(swapped.decode(Z).sample, small.decode(Z).sample)
    assert torch.equal(vae.decode(Z).sample, before)
    assert torch.equal(swapped.encoder.conv_in.weight, vae.encoder.conv_in.weight)
