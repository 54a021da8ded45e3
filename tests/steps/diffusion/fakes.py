"""A linear network whose every answer can be computed by hand, and data to go with it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from steps.training.randomness import keyed_normal, keyed_uniform

SD_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


@dataclass
class Call:
    """What the network was asked."""

    z: Tensor
    t: Tensor
    embeddings: Tensor


class LinearUNet(nn.Module):
    """Predicts (gain + caption mean) * z, and remembers what it was asked."""

    def __init__(self, gain: float = 0.3) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls: list[Call] = []

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> tuple[Tensor]:
        assert not return_dict
        self.calls.append(Call(sample.detach(), timestep, encoder_hidden_states))
        return ((self.gain + encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)) * sample,)


@dataclass
class FakeData:
    """Latents of normal distribution; caption i has the constant embedding 0.1 + i / 100, the empty
    one 0.
    """

    samples: int = 64
    mean: float = 0.0
    deviation: float = 1.0
    shape: tuple[int, int, int] = (4, 4, 4)
    empty_embedding: Tensor = field(default_factory=lambda: torch.zeros(1, 3, 5))

    def size(self, split: str) -> int:
        return self.samples

    def order(self, split: str) -> int:
        return self.samples

    def latents(self, split: str, indices: Tensor, *, seed: int, iteration: int) -> Tensor:
        noise = keyed_normal(self.shape, seed=seed, name=f"data.{split}", iteration=0, indices=indices)
        return self.mean + self.deviation * noise

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        return (0.1 + indices.float() / 100).reshape(-1, 1, 1).expand(-1, 3, 5)

    def training_embeddings(
        self, split: str, indices: Tensor, *, seed: int, iteration: int, drop_probability: float
    ) -> Tensor:
        draws = keyed_uniform(0, 1, seed=seed, name="dropped", iteration=iteration, indices=indices)
        return self.embeddings(split, indices) * (draws >= drop_probability).reshape(-1, 1, 1)
