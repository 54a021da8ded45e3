"""Gradient checkpointing: blocks keep only their inputs for the backward pass, and compute the rest again."""

from typing import Any

from torch import nn

from steps.files.errors import ConfigError


def set_recomputation(model: nn.Module, enabled: bool) -> None:
    """Switch it on or off for a diffusers model; the results are the same. Raises ConfigError for a model without it."""
    if not hasattr(model, "enable_gradient_checkpointing"):
        if enabled:
            raise ConfigError(
                f"training.gradient_checkpointing is set, but {type(model).__name__} cannot recompute; leave it out"
            )
        return
    found: Any = model
    if enabled:
        found.enable_gradient_checkpointing()
    elif found.is_gradient_checkpointing:
        found.disable_gradient_checkpointing()
