"""The blocks of a UNet2DConditionModel, read off its config: ids, channels, resolutions and skip connections.

Pure bookkeeping without torch. The up path consumes the down path's skips last in, first out; written down
once here, every ResNet of the up path knows the part whose skip it takes, so that nothing downstream ever
pops a stack.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from artifacts_schema.architecture import ArchitectureSpec, StageBlocks
from artifacts_schema.base import content_hash
from steps.files.errors import ArchitectureError

BlockKind = Literal["attention", "resnet"]

STEM = "conv_in"

_DEFAULTS: dict[str, Any] = {
    # What a supported UNet may vary in, with diffusers' defaults for keys that a config leaves out.
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}

_FIXED: dict[str, Any] = {
    # What must stay at diffusers' default: the evolved UNet's forward does not implement it, and dropout would draw
    # from torch's own generator, so that an interrupted training did not end as an uninterrupted one.
    "dropout": 0.0,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "reverse_transformer_layers_per_block": None,
    "num_attention_heads": None,
    "cross_attention_norm": None,
}

GEOMETRY_KEYS: tuple[str, ...] = tuple(_DEFAULTS)

_BLOCK_TYPES = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
}

SD15_UNET_CONFIG: dict[str, Any] = {
    # Stable Diffusion 1.5 (runwayml/stable-diffusion-v1-5, unet/config.json): 859,520,964 parameters.
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


@dataclass(frozen=True)
class Block:
    """One cross-attention or ResNet block of the base.

    `in_channels` counts the skip that an up ResNet concatenates, `hidden_channels` does not. `scale` is the
    factor by which the latent's sides are divided here. `skip_source` is the part whose skip an up ResNet
    takes, `consumer` the up ResNet that takes this down ResNet's skip.
    """

    id: str
    kind: BlockKind
    stage: str
    in_channels: int
    hidden_channels: int
    out_channels: int
    scale: int
    skip_source: str | None = None
    consumer: str | None = None

    @property
    def keeps_channels(self) -> bool:
        """True when the hidden input could pass through in the block's place."""
        return self.hidden_channels == self.out_channels


def normalise(config: Mapping[str, Any]) -> dict[str, Any]:
    """A UNet2DConditionModel's config reduced to what defines it here, lists as tuples, defaults filled in.

    Raises ArchitectureError naming the first key that the evolved UNet does not support.
    """
    for key, expected in _FIXED.items():
        if config.get(key, expected) != expected:
            raise ArchitectureError(
                f"the base UNet sets {key}={config[key]!r}, but only {key}={expected!r} is supported; "
                "use a base of the Stable Diffusion 1.x or 2.x kind"
            )
    result = {key: _plain(config.get(key, default)) for key, default in _DEFAULTS.items()}
    for key, allowed in _BLOCK_TYPES.items():
        unknown = sorted(set(result[key]) - allowed)
        if unknown:
            raise ArchitectureError(
                f"{key} holds {', '.join(unknown)}; supported are {', '.join(sorted(allowed))}"
            )
    if result["mid_block_type"] not in ("UNetMidBlock2DCrossAttn", None):
        raise ArchitectureError(
            f"mid_block_type is {result['mid_block_type']!r}; supported are 'UNetMidBlock2DCrossAttn' and None"
        )
    return result


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a UNet's geometry. The picture size does not enter: the same weights serve every size."""
    geometry = normalise(config)
    del geometry["sample_size"]
    return content_hash(geometry)


def list_blocks(config: Mapping[str, Any]) -> list[Block]:
    """Every block of the base in order of execution."""
    geometry = normalise(config)
    down = _down_blocks(geometry)
    mid = _mid_blocks(geometry)
    up = _up_blocks(geometry)
    consumers = {block.skip_source: block.id for block in up if block.skip_source}
    down = [_with_consumer(block, consumers.get(block.id)) for block in down]
    return down + mid + up


def full_spec(config: Mapping[str, Any], name: str = "base") -> ArchitectureSpec:
    """The base's own architecture as a spec."""
    stages: dict[str, list[str]] = {}
    for block in list_blocks(config):
        stages.setdefault(block.stage, []).append(block.id)
    return ArchitectureSpec(
        name=name,
        base_config=config_hash(config),
        stages=tuple(StageBlocks(stage=stage, blocks=tuple(ids)) for stage, ids in stages.items()),
    )


def module_path(block_id: str) -> str:
    """Path of a block's module, the one diffusers uses: `down_blocks.0.attentions.1`, copies `...1_copy1`."""
    path = block_id.replace(".copy", "_copy")
    if path.startswith("mid."):
        return "mid_block." + path.removeprefix("mid.")
    stage, rest = path.split(".", 1)
    return f"{stage}_blocks.{rest}"


def layers_of(geometry: Mapping[str, Any]) -> list[int]:
    """ResNets per down level."""
    layers = geometry["layers_per_block"]
    levels = len(geometry["block_out_channels"])
    return [layers] * levels if isinstance(layers, int) else list(layers)


def input_shapes(
    block: Block, geometry: Mapping[str, Any], *, batch: int, latent_size: tuple[int, int], tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Shapes of a block's inputs: (B, C, H, W), then (B, tokens, D) for an attention, (B, T) for a ResNet."""
    height, width = (_ceil_div(side, block.scale) for side in latent_size)
    image = (batch, block.in_channels, height, width)
    if block.kind == "attention":
        return image, (batch, tokens, _text_width(geometry))
    return image, (batch, 4 * geometry["block_out_channels"][0])


def _down_blocks(geometry: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    hidden = geometry["block_out_channels"][0]
    for level, (out, layers) in enumerate(
        zip(geometry["block_out_channels"], layers_of(geometry), strict=True)
    ):
        has_attention = geometry["down_block_types"][level].startswith("CrossAttn")
        stage, scale = f"down.{level}", 2**level
        for layer in range(layers):
            blocks.append(Block(f"{stage}.resnets.{layer}", "resnet", stage, hidden, hidden, out, scale))
            hidden = out
            if has_attention:
                blocks.append(Block(f"{stage}.attentions.{layer}", "attention", stage, out, out, out, scale))
    return blocks


def _mid_blocks(geometry: Mapping[str, Any]) -> list[Block]:
    if geometry["mid_block_type"] is None:  # BK-SDM's small and tiny UNets
        return []
    width = geometry["block_out_channels"][-1]
    scale = 2 ** (len(geometry["block_out_channels"]) - 1)
    ids: list[tuple[str, BlockKind]] = [
        ("mid.resnets.0", "resnet"),
        ("mid.attentions.0", "attention"),
        ("mid.resnets.1", "resnet"),
    ]
    return [Block(block_id, kind, "mid", width, width, width, scale) for block_id, kind in ids]


def _skips(geometry: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Every skip the full down path makes, in order: (id of the part that makes it, channels)."""
    widths = geometry["block_out_channels"]
    skips = [(STEM, widths[0])]
    for level, (out, layers) in enumerate(zip(widths, layers_of(geometry), strict=True)):
        skips += [(f"down.{level}.resnets.{layer}", out) for layer in range(layers)]
        if level < len(widths) - 1:
            skips.append((f"down.{level}.downsamplers.0", out))
    return skips


def _up_blocks(geometry: Mapping[str, Any]) -> list[Block]:
    skips = _skips(geometry)
    widths = list(reversed(geometry["block_out_channels"]))
    layers = [count + 1 for count in reversed(layers_of(geometry))]
    blocks: list[Block] = []
    hidden = widths[0]
    for level, out in enumerate(widths):
        has_attention = geometry["up_block_types"][level].startswith("CrossAttn")
        stage, scale = f"up.{level}", 2 ** (len(widths) - 1 - level)
        for layer in range(layers[level]):
            source, skip = skips.pop()
            blocks.append(
                Block(f"{stage}.resnets.{layer}", "resnet", stage, hidden + skip, hidden, out, scale, source)
            )
            hidden = out
            if has_attention:
                blocks.append(Block(f"{stage}.attentions.{layer}", "attention", stage, out, out, out, scale))
    return blocks


def _with_consumer(block: Block, consumer: str | None) -> Block:
    if consumer is None:
        return block
    return Block(**{**block.__dict__, "consumer": consumer})


def _text_width(geometry: Mapping[str, Any]) -> int:
    width = geometry["cross_attention_dim"]
    return int(width if isinstance(width, int) else width[0])


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _plain(value: Any) -> Any:
    """Lists (as JSON has them) become tuples, at any depth."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(item) for item in value)
    return value
