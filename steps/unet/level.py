"""One stage of an evolved UNet: diffusers' own blocks under diffusers' own names."""

import copy

from torch import nn

from artifacts_schema.architecture import is_copy, original_of
from steps.unet.blocks import module_path


class Level(nn.Module):
    """The remaining blocks of one stage, in order, with its resampler."""

    def __init__(self, base: nn.Module, block_ids: tuple[str, ...]) -> None:
        super().__init__()
        self.block_ids = block_ids
        self.attentions = nn.ModuleDict()
        self.resnets = nn.ModuleDict()
        for block_id in block_ids:
            _, kind, index = module_path(block_id).rsplit(".", 2)
            source = getattr(base, kind)[int(original_of(block_id).rsplit(".", 1)[1])]
            getattr(self, kind)[index] = copy.deepcopy(source) if is_copy(block_id) else source
        self.downsamplers: nn.ModuleList | None = getattr(base, "downsamplers", None)
        self.upsamplers: nn.ModuleList | None = getattr(base, "upsamplers", None)

    def block(self, block_id: str) -> nn.Module:
        """The module of a block."""
        _, kind, index = module_path(block_id).rsplit(".", 2)
        module: nn.Module = getattr(self, kind)[index]
        return module
