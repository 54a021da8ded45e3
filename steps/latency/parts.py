"""The parts of a UNet that are timed: every block, and what runs around the blocks."""

from dataclasses import dataclass

from torch import nn

from artifacts_schema.latency import PartKind
from steps.unet.blocks import Block, list_blocks, module_path


@dataclass(frozen=True)
class Part:
    """One row of the table: the modules that belong to it, which may run one after another."""

    id: str
    kind: PartKind
    modules: tuple[nn.Module, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for module in self.modules for parameter in module.parameters())


def unet_parts(unet: nn.Module) -> list[Part]:
    """Every part of a UNet2DConditionModel or of a full EvolvedUNet; they hold all its parameters."""
    blocks: list[Block] = list_blocks(unet.config)  # type: ignore[arg-type]
    parts = [
        Part("conv_in", "stem", (unet.get_submodule("conv_in"),)),
        Part("time_embedding", "time_embedding", _modules(unet, "time_proj", "time_embedding")),
        Part("conv_out", "stem", _modules(unet, "conv_norm_out", "conv_act", "conv_out")),
    ]
    parts += [Part(block.id, block.kind, (unet.get_submodule(module_path(block.id)),)) for block in blocks]
    for way in ("down", "up"):
        levels = unet.get_submodule(f"{way}_blocks")
        for index in range(len(list(levels.children()))):
            name = f"{way}samplers"
            resamplers = getattr(unet.get_submodule(f"{way}_blocks.{index}"), name, None)
            if resamplers is not None:
                parts.append(Part(f"{way}.{index}.{name}.0", "resampler", (resamplers[0],)))
    return parts


def _modules(unet: nn.Module, *names: str) -> tuple[nn.Module, ...]:
    return tuple(unet.get_submodule(name) for name in names if getattr(unet, name, None) is not None)
