"""Draws depend on their keys and on nothing else."""

import torch

from steps.training.randomness import coin, epoch_indices, keyed_integers, keyed_normal, keyed_uniform, spawn


def test_noise_follows_the_sample_not_its_place_in_the_batch() -> None:
    keys = {"seed": 1, "name": "noise", "iteration": 7}
    together = keyed_normal((2, 3), indices=torch.tensor([4, 9, 2]), **keys)  # type: ignore[arg-type]
    alone = keyed_normal((2, 3), indices=torch.tensor([9]), **keys)  # type: ignore[arg-type]
    assert torch.equal(together[1], alone[0])


def test_names_iterations_and_seeds_are_independent_streams() -> None:
    index = torch.tensor([0])
    draws = {
        keyed_normal((1,), seed=s, name=n, iteration=i, indices=index).item()
        for s in (0, 1)
        for n in ("a", "b")
        for i in (0, 1)
    }
    assert len(draws) == 8


def test_global_generator_is_untouched() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    keyed_normal((4,), seed=0, name="x", iteration=0, indices=torch.arange(3))
    assert torch.equal(torch.rand(1), expected)


def test_ranges() -> None:
    index = torch.arange(2000)
    uniform = keyed_uniform(2.0, 14.0, seed=0, name="w", iteration=0, indices=index)
    integers = keyed_integers(0, 5, seed=0, name="t", iteration=0, indices=index)
    assert uniform.min() >= 2
    assert uniform.max() < 14
    assert abs(uniform.mean() - 8) < 0.3
    assert integers.unique().tolist() == [0, 1, 2, 3, 4]


def test_coin_frequency() -> None:
    heads = sum(coin(0.1, seed=0, name="cfg", iteration=i) for i in range(3000))
    assert 240 < heads < 360


def test_every_epoch_visits_every_sample_once_in_its_own_order() -> None:
    stream = epoch_indices(samples=7, start=0, count=21, seed=0)
    epochs = stream.view(3, 7)
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epoch_indices(samples=7, start=5, count=9, seed=0), stream[5:14])


def test_spawn_is_stable() -> None:
    assert spawn(0, "probe") == spawn(0, "probe") != spawn(0, "probe", 1)
