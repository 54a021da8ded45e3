"""The half-width decoder: a quarter of the weights, cut out of the full one along its structure."""

from pathlib import Path

import pytest
import torch

from steps.files.errors import ConfigError
from steps.unet import small_decoder
from steps.unet.small_decoder import SmallDecoder, small_widths, with_decoder
from tests.factories import tiny_vae

Z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 16), (12, 36)])
@torch.no_grad()
def test_keeping_every_channel_keeps_the_decoder(widths: tuple[int, ...]) -> None:
    vae = tiny_vae(widths)
    same = SmallDecoder.cut_from(vae, width_fraction=1.0)
    torch.testing.assert_close(same.decode(Z).sample, vae.decode(Z).sample)


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 16), (12, 36)])
def test_half_the_width_is_a_quarter_of_the_weights(widths: tuple[int, ...]) -> None:
    vae = tiny_vae(widths)
    small = SmallDecoder.cut_from(vae, width_fraction=0.5)
    assert small.config.block_out_channels == tuple(width // 2 for width in widths)
    full = sum(p.numel() for p in vae.decoder.parameters())
    assert full / sum(p.numel() for p in small.decoder.parameters()) == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("widths", [(16, 32), (16, 32, 32)])
@torch.no_grad()
def test_reads_the_channels_that_it_writes(widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every channel of a narrow decoder gets a copy that nobody reads: cutting the copies changes nothing."""
    vae = tiny_vae(widths, mid_block_add_attention=False)
    half = SmallDecoder.cut_from(vae, width_fraction=0.5)
    narrow = dict(half.named_parameters())
    for parameter in narrow.values():
        parameter.normal_(std=0.3)
    for name, parameter in vae.decoder.named_parameters():
        value = narrow[f"decoder.{name}"]
        if parameter.ndim > 1 and parameter.shape[1] != value.shape[1]:
            value = torch.stack([value, torch.zeros_like(value)], dim=2).flatten(1, 2)
        if parameter.shape[0] != value.shape[0]:
            value = value.repeat_interleave(2, dim=0)
        parameter.copy_(value)
    vae.post_quant_conv.load_state_dict(half.post_quant_conv.state_dict())
    monkeypatch.setattr(
        small_decoder, "_largest", lambda score, count: torch.arange(0, len(score), 2)[:count]
    )
    cut = SmallDecoder.cut_from(vae, width_fraction=0.5)
    torch.testing.assert_close(vae.decode(Z).sample, half.decode(Z).sample, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cut.decode(Z).sample, half.decode(Z).sample)


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
        ((20, 40), 4, ((10, 20), 2)),  # never more than the full decoder has
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
