"""The network of an evolved UNet: diffusers' own blocks under diffusers' own names, in a wiring of ours.

All that drawing takes, and nothing that only making one needs: `steps.export.standalone` copies what stands here into
every student's folder.
"""

from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin, UNet2DConditionLoadersMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from artifacts_schema.architecture import is_copy
from steps.files.errors import ArchitectureError
from steps.unet.blocks import GEOMETRY_KEYS, STEM, list_blocks, normalise
from steps.unet.level import Level


class BlockwiseUNet(
    ModelMixin,
    ConfigMixin,
    AttentionMixin,
    UNet2DConditionLoadersMixin,
    PeftAdapterMixin,
):
    """UNet of the blocks that `architecture` lists; called like UNet2DConditionModel, and takes its LoRAs.

    `architecture` is an ArchitectureSpec's JSON payload (None: the base's own architecture); the other arguments are
    UNet2DConditionModel's. Whether the blocks fit together is checked where an architecture is made: see EvolvedUNet.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913 - UNet2DConditionModel's own arguments
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        attention_head_dim: int | tuple[int, ...] = 8,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        geometry = self.geometry()
        self._skip_sources = {b.id: b.skip_source for b in list_blocks(geometry) if b.skip_source is not None}
        self._skipped: frozenset[str] = frozenset()
        self.gradient_checkpointing = False
        self._take_modules(UNet2DConditionModel(**geometry), self._blocks_of(architecture))

    def _blocks_of(self, architecture: dict[str, Any] | None) -> dict[str, tuple[str, ...]]:
        """Ids of the blocks that run, by stage and in order."""
        if architecture:
            return {stage["stage"]: tuple(stage["blocks"]) for stage in architecture["stages"]}
        found: dict[str, tuple[str, ...]] = {}
        for block in list_blocks(self.geometry()):
            found[block.stage] = (*found.get(block.stage, ()), block.id)
        return found

    def _take_modules(self, base: UNet2DConditionModel, blocks: dict[str, tuple[str, ...]]) -> None:
        """Adopt the modules of a whole UNet and let go of those that were removed."""
        self.conv_in = base.conv_in
        self.time_proj = base.time_proj
        self.time_embedding = base.time_embedding
        self.down_blocks = nn.ModuleList(
            Level(level, blocks[f"down.{i}"]) for i, level in enumerate(base.down_blocks)
        )
        self.up_blocks = nn.ModuleList(
            Level(level, blocks[f"up.{i}"]) for i, level in enumerate(base.up_blocks)
        )
        self.mid_block = None if base.mid_block is None else Level(base.mid_block, blocks["mid"])
        self.conv_norm_out, self.conv_act, self.conv_out = base.conv_norm_out, base.conv_act, base.conv_out

    def geometry(self) -> dict[str, Any]:
        """The base UNet's config, as `steps.unet.blocks.normalise` gives it."""
        return normalise({key: self.config[key] for key in GEOMETRY_KEYS})

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Noise or velocity prediction.

        sample: (B, C, H, W) noisy latents. timestep: scalar or (B,). encoder_hidden_states: (B, tokens, D).
        Returns (B, C, H, W). `added_cond_kwargs` is there for the pipeline's sake and must be empty.
        """
        if added_cond_kwargs:
            raise ArchitectureError(f"added_cond_kwargs are not supported, found {sorted(added_cond_kwargs)}")
        text = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
            "return_dict": False,
        }
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        embedding = self.time_embedding(self._time_features(sample, timestep), timestep_cond)  # (B, T)
        hidden = self.conv_in(sample)
        skips: dict[str, Tensor] = {STEM: hidden}
        sizes: list[tuple[int, int]] = []
        for index, level in enumerate(self._down_levels):
            hidden = self._down(level, hidden, embedding, text, skips)
            sizes.append((hidden.shape[-2], hidden.shape[-1]))
            if level.downsamplers is not None:
                hidden = level.downsamplers[0](hidden)
                skips[f"down.{index}.downsamplers.0"] = hidden
        for block_id in self._active(self.mid_block):
            hidden = self._run(cast(Level, self.mid_block), block_id, hidden, embedding, text)
        for index, level in enumerate(self._up_levels):
            hidden = self._up(level, hidden, embedding, text, skips)
            if level.upsamplers is not None:
                hidden = level.upsamplers[0](hidden, self._upsample_size(sample, sizes[-2 - index]))
        if self.conv_norm_out is not None:
            hidden = self.conv_act(self.conv_norm_out(hidden))
        hidden = self.conv_out(hidden)
        return UNet2DConditionOutput(sample=hidden) if return_dict else (hidden,)

    @property
    def _down_levels(self) -> list[Level]:
        return [cast(Level, level) for level in self.down_blocks]

    @property
    def _up_levels(self) -> list[Level]:
        return [cast(Level, level) for level in self.up_blocks]

    def _active(self, level: Level | None) -> list[str]:
        """Ids of the blocks that run; none of a middle that there is not."""
        return [block_id for block_id in level.block_ids if block_id not in self._skipped] if level else []

    def _down(
        self, level: Level, hidden: Tensor, embedding: Tensor, text: dict[str, Any], skips: dict[str, Tensor]
    ) -> Tensor:
        """One down level. A ResNet's skip is taken when the next ResNet of the base begins or the level ends,
        so that it comes after the last remaining block between the two."""
        maker: str | None = None
        for block_id in self._active(level):
            if ".resnets." in block_id and not is_copy(block_id):
                if maker is not None:
                    skips[maker] = hidden
                maker = block_id
            hidden = self._run(level, block_id, hidden, embedding, text)
        if maker is not None:
            skips[maker] = hidden
        return hidden

    def _up(
        self, level: Level, hidden: Tensor, embedding: Tensor, text: dict[str, Any], skips: dict[str, Tensor]
    ) -> Tensor:
        """One up level; every ResNet takes the skip of its own source, whatever else was removed."""
        for block_id in self._active(level):
            if block_id in self._skip_sources:
                hidden = torch.cat([hidden, skips[self._skip_sources[block_id]]], dim=1)
            hidden = self._run(level, block_id, hidden, embedding, text)
        return hidden

    def _run(
        self, level: Level, block_id: str, hidden: Tensor, embedding: Tensor, text: dict[str, Any]
    ) -> Tensor:
        module = level.block(block_id)
        if ".attentions." in block_id:
            attended: Tensor = module(hidden, **text)[0]  # recomputes itself when checkpointing is on
            return attended
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            recomputed: Tensor = self._gradient_checkpointing_func(module, hidden, embedding)
            return recomputed
        result: Tensor = module(hidden, embedding)
        return result

    def _time_features(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        """Sinusoidal features of the timestep, (B, block_out_channels[0])."""
        if not torch.is_tensor(timestep):
            dtype = torch.float64 if isinstance(timestep, float) else torch.int64
            timestep = torch.tensor([timestep], dtype=dtype, device=sample.device)
        elif timestep.ndim == 0:
            timestep = timestep[None].to(sample.device)
        features: Tensor = self.time_proj(timestep.expand(sample.shape[0]))
        return features.to(sample.dtype)

    def _upsample_size(self, sample: Tensor, size: tuple[int, int]) -> tuple[int, int] | None:
        """Size to upsample to where halving the latent's sides lost a row or column, else None."""
        factor = 2 ** (len(self.up_blocks) - 1)
        divisible = sample.shape[-2] % factor == 0 and sample.shape[-1] % factor == 0
        return None if divisible else size
