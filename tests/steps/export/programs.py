"""Small networks in the place of a decoder, and their packages."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from steps.export.contract import Contract
from steps.export.convert import export
from steps.export.program_check import Sample
from tests.steps.export.factories import CONTRACTS

CONTRACT: Contract = CONTRACTS["vae_decoder"]
Exporter = Callable[[nn.Module], Path]


class Layers(nn.Module):
    """From z (1, 4, 16, 16) to a picture (1, 3, 32, 32)."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.gain = gain

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.gain * self.first(z)
        return self.enlarged(nn.functional.silu(self.norm(hidden)))

    def enlarged(self, hidden: Tensor) -> Tensor:
        return self.last(nn.functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Cancels(Layers):
    """A large number comes and goes: in float16 little is left of what it was added to."""

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.first(z)
        cancelled = torch.relu(hidden + 2000.0) - 2000.0
        return super().forward(z) + 1e-3 * self.enlarged(cancelled)


def exporter(folder: Path, target: str = "iOS17") -> Exporter:
    """Converts, saves, and returns the package's path."""

    def convert(module: nn.Module) -> Path:
        path = folder / "decoder.mlpackage"
        export("vae_decoder", module, CONTRACT, path, target=target, attribution="", version="0")
        return path

    return convert


def samples(count: int = 2) -> Iterator[Sample]:
    """Random inputs that float16 holds."""
    for _ in range(count):
        yield Sample("latents", {"z": torch.randn(1, 4, 16, 16).half().float()})
