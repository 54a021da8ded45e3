"""Where a training's networks and numbers lie, so that the device is kept busy: none of it changes what is computed."""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
# Autocast turns these layers' weights into bfloat16 in every call; normalisations keep theirs.
_CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear)
_BACKEND = "inductor"


def set_deterministic(enabled: bool) -> None:
    """Switch torch's deterministic algorithms; what an operation is about to overwrite is not filled before.

    torch would fill it, so that a read of memory that nobody wrote is repeated alike: 5 % of a training step on a CPU.
    """
    torch.use_deterministic_algorithms(enabled, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def memory_format(device: torch.device) -> torch.memory_format:
    """Of convolutions' weights: channels last where tensor cores read them so. On a CPU it was measured to gain nothing."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def placed(model: Model, device: torch.device) -> Model:
    """The same model on the device, in its layout."""
    return model.to(device).to(memory_format=memory_format(device))


def frozen(model: Model, device: torch.device, precision: str) -> Model:
    """The same model, placed for evaluation beside a training of this precision.

    With "bf16" it serves within autocast only: convolutions and linear layers hold the bfloat16 weights that autocast would
    make in every call, half the memory and the same numbers.
    """
    placed(model, device).requires_grad_(False).eval()
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, _CAST_BY_AUTOCAST):
                module.bfloat16()
    return model


def compiled(model: nn.Module, held: Iterable[object]) -> nn.Module:
    """`model` behind torch.compile, and the networks among what a loss has `held` compiled where they are.

    `model` itself stays as it is: what is called by its own name, as in a held-out check, is not compiled.
    """
    for network in held:
        if isinstance(network, nn.Module):
            network.compile(backend=_BACKEND)
    return torch.compile(model, backend=_BACKEND)  # type: ignore[return-value]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU through pinned memory: the copy waits for no kernel, nor do the next draws."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
