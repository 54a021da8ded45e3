"""Looks at what a stage hands to the training loop, and the loop to the optimizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


@dataclass
class Watched:
    """Arguments of `train`, and learning rate and gradient of every optimizer step."""

    loss: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    first_gradient: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, stage: ModuleType) -> Iterator[Watched]:
    """What `stage` does with its training while the block lasts."""
    seen, original = Watched(), stage.train

    def train(model: Any, loss: Any, **settings: Any) -> Any:
        seen.loss, seen.settings = loss, settings
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            (group,) = optimizer.param_groups
            gradients = {names[id(p)]: p.grad.clone() for p in group["params"] if p.grad is not None}
            seen.first_gradient = seen.first_gradient or gradients
            seen.rates.append(group["lr"])
            seen.norms.append(float(torch.stack([g.norm() for g in gradients.values()]).norm()))

        hook = register_optimizer_step_pre_hook(look)
        try:
            return original(model, loss, **settings)
        finally:
            hook.remove()

    with monkeypatch.context() as patched:
        patched.setattr(stage, "train", train)
        yield seen
