import pytest
import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from steps.export.rounding import rounded_results, with_rounded_weights


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = Timesteps(4, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.tensor([0.1]))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(t)
        result = self.linear(features)
        result[:, :2] += 1 / 3  # in place, on a view
        return features, result


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, result = self.network(t)
        return features, result, result / 3


def _is_float16(value: Tensor) -> bool:
    return torch.equal(value, value.half().float())


def test_weights_are_rounded_in_a_copy() -> None:
    network = Network()
    rounded = with_rounded_weights(network)
    assert all(_is_float16(parameter) for parameter in rounded.parameters())
    assert not any(_is_float16(parameter) for parameter in network.parameters())
    assert torch.equal(rounded.get_buffer("table"), network.get_buffer("table"))


def test_results_inside_are_rounded_and_nothing_else() -> None:
    outer = Outer()
    t = torch.tensor([981.0])
    with torch.no_grad():
        plain = outer(t)
        with rounded_results(outer.network):
            features, result, outside = outer(t)
        after = outer(t)
    assert torch.equal(features, plain[0]) and not _is_float16(features)
    assert _is_float16(result) and not torch.equal(result, plain[1])
    assert torch.equal(outside, result / 3) and not _is_float16(outside)
    assert all(torch.equal(*pair) for pair in zip(plain, after, strict=True))  # no hook is left


def test_an_error_leaves_no_hook() -> None:
    network = Network()
    with pytest.raises(AssertionError, match="1d"), torch.no_grad(), rounded_results(network):
        network(torch.zeros(1, 2, 3))
    assert not network._forward_hooks and not network._forward_pre_hooks
