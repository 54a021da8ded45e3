"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ema_decay(update: int, maximum: float) -> float:
    """Decay of update number `update` (0-based): min(maximum, (1 + n) / (10 + n)).

    The ramp lets a short training leave its start behind; with a constant 0.999 a hundred steps would hardly move.
    """
    return min(maximum, (1.0 + update) / (10.0 + update))


class ExponentialMovingAverage:
    """Float32 shadow of every trainable parameter, keyed by parameter name; `on_host` in the computer's own memory."""

    def __init__(self, model: nn.Module, maximum_decay: float, *, on_host: bool = False) -> None:
        self.maximum_decay = maximum_decay
        self.updates = 0
        self.device = torch.device("cpu") if on_host else None  # None: where the parameters are
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().to(self.device or parameter.device, torch.float32, copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the shadow towards the model's weights by one step."""
        decay = ema_decay(self.updates, self.maximum_decay)
        self.updates += 1
        parameters = dict(model.named_parameters())
        shadows = list(self.shadow.values())
        currents = [parameters[name].detach().to(shadow) for name, shadow in self.shadow.items()]
        torch._foreach_lerp_(shadows, currents, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's trainable parameters with the shadow."""
        parameters = dict(model.named_parameters())
        for name, value in self.shadow.items():
            parameters[name].copy_(value.to(parameters[name].dtype))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model carries the shadow and is in evaluation mode, inside the block alone."""
        parameters = dict(model.named_parameters())
        own = {name: parameters[name].detach().clone() for name in self.shadow}
        training = model.training
        self.copy_to(model)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            with torch.no_grad():
                for name, value in own.items():
                    parameters[name].copy_(value)
