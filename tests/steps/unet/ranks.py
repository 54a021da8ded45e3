"""One rank of a training that skips units; run and used by test_ranks.py."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from artifacts_schema.stage_configs import TrainingConfig
from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.selection import held_out_loss
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet
from tests.factories import tiny_unet
from tests.steps.evolution.factories import TinyData

CONFIG = TrainingConfig(
    iterations=3, batch_size=4, accumulation=2, learning_rate=1e-3, gradient_clip=1e9, held_out_checks=1
)


def train_rank(folder: Path) -> None:
    """Leave the first gradient, the weights, what was chosen, and whether each micro-batch averaged gradients."""
    folder.mkdir()
    schedule = NoiseSchedule.from_config({"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"})
    loss = SkippingLoss(Sampling(TinyData(), schedule, 0.1, torch.device("cpu")), probability=0.5)
    unet = EvolvedUNet.from_unet(tiny_unet()).requires_grad_(True)
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    gradients: list[dict[str, Tensor]] = []
    averaged: list[bool] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        gradients.append({names[id(p)]: p.grad.clone() for p in parameters if p.grad is not None})

    def noted(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        averaged.append(getattr(model, "require_backward_grad_sync", True))
        return loss(model, batch)

    hook = register_optimizer_step_pre_hook(look)
    held_out = held_out_loss("v", loss, 4, seed=3)
    outcome = train(
        unet, noted, training=CONFIG, samples=12, seed=3, folder=folder / "checkpoints", held_out=held_out
    )
    hook.remove()
    assert outcome.selection is not None
    save_file(gradients[0], folder / "gradient.safetensors")
    save_file(
        {k: v.contiguous() for k, v in outcome.model.state_dict().items()}, folder / "weights.safetensors"
    )
    state = {"averaged": averaged, "selection": outcome.selection.model_dump(mode="json")}
    (folder / "state.json").write_text(json.dumps(state))


def rank(number: int, port: int, folder: Path) -> None:
    """A process of its own, one of two."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    train_rank(folder / str(number))
