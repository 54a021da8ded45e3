"""A decoder of smaller width, cut out of a full one (SnapFusion section 3.2: uniform channel pruning).

Channels of the residual streams must be chosen alike wherever a stream is read or written, so the cut follows
the decoder's structure: conv_in, mid block and first up block share one stream, each wider-to-narrower ResNet
and each upsampler starts the next. Channels with the largest weight norm stay.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from steps.files.errors import ConfigError


class SmallDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Decoder and `post_quant_conv` of an AutoencoderKL, without its encoder.

    An AutoencoderKL has one `block_out_channels` for both halves; this class has the decoder's only. It
    carries what a StableDiffusionPipeline reads of a VAE (`decode`, `config.scaling_factor`,
    `config.block_out_channels`, `config.latent_channels`), so it also works as `vae=` of a text-to-image
    pipeline, saved and loaded.
    """

    _supports_gradient_checkpointing = True

    SHARED: ClassVar[tuple[str, ...]] = (
        "out_channels",
        "up_block_types",
        "layers_per_block",
        "act_fn",
        "latent_channels",
        "scaling_factor",
        "force_upcast",
        "use_post_quant_conv",
        "mid_block_add_attention",
        "sample_size",
    )
    """What it has as the full decoder has it."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913 - the configuration that is saved with the weights
        self,
        out_channels: int = 3,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        force_upcast: bool = False,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        sample_size: int = 512,
    ) -> None:
        super().__init__()
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=out_channels,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            mid_block_add_attention=mid_block_add_attention,
        )
        conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.post_quant_conv = conv

    @classmethod
    def cut_from(cls, vae: AutoencoderKL, *, width_fraction: float) -> Self:
        """A decoder with `width_fraction` of every width, started from the channels of largest weight norm.

        Raises ConfigError when a width would vanish.
        """
        widths, groups = small_widths(
            vae.config.block_out_channels, width_fraction, norm_num_groups=vae.config.norm_num_groups
        )
        settings = {key: vae.config[key] for key in cls.SHARED}
        small: Self = cls(**settings, block_out_channels=widths, norm_num_groups=groups)
        if small.post_quant_conv is not None:
            small.post_quant_conv.load_state_dict(vae.post_quant_conv.state_dict())
        _Cut(groups).decoder(vae.decoder, small.decoder)
        return small

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Pictures (n, 3, height, width) in about [-1, 1] from unscaled latents; as AutoencoderKL.decode."""
        sample = self.forward(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, z: Tensor) -> Tensor:
        """The picture tensor of `decode`."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        sample: Tensor = self.decoder(z)
        return sample


def with_decoder(vae: AutoencoderKL, small: SmallDecoder) -> AutoencoderKL:
    """A copy of the autoencoder that keeps its encoder and decodes with `small`; for use in memory, not for
    saving.
    """
    combined = copy.deepcopy(vae)
    combined.decoder = copy.deepcopy(small.decoder)
    combined.post_quant_conv = copy.deepcopy(small.post_quant_conv)
    return combined


def small_widths(
    block_out_channels: Iterable[int], width_fraction: float, *, norm_num_groups: int
) -> tuple[tuple[int, ...], int]:
    """Widths times `width_fraction`, rounded down, and the largest number of norm groups that divides all of
    them.

    Raises ConfigError when a width would be below one channel.
    """
    widths = tuple(int(width * width_fraction) for width in block_out_channels)
    if min(widths) < 1:
        raise ConfigError(
            f"decoder_distillation.width_fraction {width_fraction} leaves no channel of widths "
            f"{tuple(block_out_channels)}; choose a larger one"
        )
    common = math.gcd(*widths)
    groups = max(g for g in range(1, norm_num_groups + 1) if common % g == 0)
    return widths, groups


class _Cut:
    """Copies the chosen channels of a full decoder into a smaller one, module by module."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    @torch.no_grad()
    def decoder(self, full: Any, small: Any) -> None:
        """The whole decoder. `stream` holds the kept channels of the current residual stream."""
        stream = self.choose(self.stream_writers(full), small.conv_in.out_channels)
        _copy(full.conv_in, small.conv_in, rows=stream, columns=None)
        for index, resnet in enumerate(small.mid_block.resnets):
            # The mid block runs resnet, attention, resnet.
            if index > 0 and (attention := small.mid_block.attentions[index - 1]) is not None:
                self.attention(full.mid_block.attentions[index - 1], attention, stream)
            stream = self.resnet(full.mid_block.resnets[index], resnet, stream)
        for full_block, block in zip(full.up_blocks, small.up_blocks, strict=True):
            for full_resnet, resnet in zip(full_block.resnets, block.resnets, strict=True):
                stream = self.resnet(full_resnet, resnet, stream)
            for full_up, up in zip(full_block.upsamplers or (), block.upsamplers or (), strict=True):
                kept = self.choose([full_up.conv], up.conv.out_channels)
                _copy(full_up.conv, up.conv, rows=kept, columns=stream)
                stream = kept
        _copy_norm(full.conv_norm_out, small.conv_norm_out, stream)
        _copy(full.conv_out, small.conv_out, rows=None, columns=stream)

    def stream_writers(self, full: Any) -> list[nn.Module]:
        """Every layer that writes into the first residual stream; they decide which channels matter."""
        mid = full.mid_block
        attentions = [attention.to_out[0] for attention in mid.attentions if attention is not None]
        resnets = [*mid.resnets, *(r for r in full.up_blocks[0].resnets if r.conv_shortcut is None)]
        return [full.conv_in, *attentions, *(resnet.conv2 for resnet in resnets)]

    def resnet(self, full: Any, small: Any, stream: Tensor) -> Tensor:
        """One ResNet block; returns the kept channels of its output stream."""
        hidden = self.choose([full.conv1], small.conv1.out_channels)
        _copy_norm(full.norm1, small.norm1, stream)
        _copy(full.conv1, small.conv1, rows=hidden, columns=stream)
        _copy_norm(full.norm2, small.norm2, hidden)
        if full.conv_shortcut is None:
            _copy(full.conv2, small.conv2, rows=stream, columns=hidden)
            return stream
        kept = self.choose([full.conv2, full.conv_shortcut], small.conv2.out_channels)
        _copy(full.conv2, small.conv2, rows=kept, columns=hidden)
        _copy(full.conv_shortcut, small.conv_shortcut, rows=kept, columns=stream)
        return kept

    def attention(self, full: Any, small: Any, stream: Tensor) -> None:
        """The mid block's self-attention: queries and keys lose the same channels, values and output too."""
        inner = small.to_q.out_features
        matched = _largest(_row_norms(full.to_q) * _row_norms(full.to_k), inner)
        values = _largest(_row_norms(full.to_v), inner)
        _copy_norm(full.group_norm, small.group_norm, stream)
        _copy(full.to_q, small.to_q, rows=matched, columns=stream)
        _copy(full.to_k, small.to_k, rows=matched, columns=stream)
        _copy(full.to_v, small.to_v, rows=values, columns=stream)
        _copy(full.to_out[0], small.to_out[0], rows=stream, columns=values)

    def choose(self, writers: Iterable[nn.Module], count: int) -> Tensor:
        """`count` channels of largest weight norm over all `writers`, in order.

        Where the widths allow it, as many from each norm group: a channel then stays in its group, whose
        statistics it was trained with.
        """
        squares = [_row_norms(writer).square() for writer in writers]
        score = torch.stack(squares).sum(0)
        if len(score) % self.groups or count % self.groups:
            return _largest(score, count)
        width = len(score) // self.groups
        groups = score.reshape(self.groups, width)
        parts = [_largest(group, count // self.groups) + i * width for i, group in enumerate(groups)]
        return torch.cat(parts)


def _largest(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, rising."""
    return score.topk(count).indices.sort().values


def _row_norms(layer: nn.Module) -> Tensor:
    """Norm of the weights that make each output channel, (out,)."""
    norms: Tensor = layer.get_parameter("weight").detach().flatten(1).norm(dim=1)
    return norms


def _copy(full: nn.Module, small: nn.Module, *, rows: Tensor | None, columns: Tensor | None) -> None:
    """Weights of the chosen output channels (`rows`) and input channels (`columns`); None keeps all."""
    weight, bias = full.get_parameter("weight").detach(), full.get_parameter("bias").detach()
    if columns is not None:
        weight = weight[:, columns]
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    small.get_parameter("weight").copy_(weight)
    small.get_parameter("bias").copy_(bias)


def _copy_norm(full: nn.Module, small: nn.Module, kept: Tensor) -> None:
    small.get_parameter("weight").copy_(full.get_parameter("weight")[kept])
    small.get_parameter("bias").copy_(full.get_parameter("bias")[kept])
