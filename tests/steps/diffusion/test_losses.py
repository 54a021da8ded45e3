"""The distillation and velocity losses, against float64 numpy and against mistakes that others made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from steps.diffusion import losses
from steps.diffusion.losses import (
    DistillationLoss,
    Sampling,
    VelocityLoss,
    combined_loss,
    guidance_power,
)
from steps.diffusion.schedule import NoiseSchedule, grid_timesteps
from steps.training.batch import Batch
from tests.steps.diffusion.fakes import SD_SCHEDULE, FakeData, LinearUNet

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
POWER = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
BATCH = Batch(iteration=3, indices=torch.tensor([5, 0, 17, 33, 8, 60, 2, 41]), seed=11)
STEPS = 8


def alpha_sigma(t: int) -> tuple[float, float]:
    """In float64; t = -1 is the clean latent."""
    power = 1.0 if t == -1 else POWER[t]
    return float(np.sqrt(power)), float(np.sqrt(1 - power))


def sampling(caption_dropout: float = 0.0) -> Sampling:
    return Sampling(FakeData(), SCHEDULE, caption_dropout, torch.device("cpu"))


def distillation(
    teacher: LinearUNet, *, cfg_probability: float = 0.0, gamma: float = 0.0, steps: int = STEPS
) -> DistillationLoss:
    return DistillationLoss(
        teacher=teacher,
        sampling=sampling(),
        student_steps=steps,
        cfg_probability=cfg_probability,
        cfg_range=(2.0, 14.0),
        gamma=gamma,
    )


def expected_loss(
    student_gain: float, teacher_gain: float, z: np.ndarray, t: int, caption: float, w: float, steps: int
) -> float:
    """Equations 7-10 for one sample and the linear network, where v = (gain + caption) z and the empty
    caption is 0; divided by w^2 + (w - 1)^2.
    """
    grid = [*grid_timesteps(2 * steps, train_timesteps=1000), -1]
    k = grid.index(t)

    def v(gain: float, latent: np.ndarray) -> np.ndarray:
        return w * (gain + caption) * latent - (w - 1) * gain * latent

    latent = z
    for now, following in ((grid[k], grid[k + 1]), (grid[k + 1], grid[k + 2])):
        (a, s), (a_next, s_next) = alpha_sigma(now), alpha_sigma(following)
        velocity = v(teacher_gain, latent)
        latent = a_next * (a * latent - s * velocity) + s_next * (s * latent + a * velocity)
    (a, s), (a_end, s_end) = alpha_sigma(t), alpha_sigma(grid[k + 2])
    target = (latent - s_end / s * z) / (a_end - s_end / s * a)
    student = a * z - s * v(student_gain, z)
    return float(max(a**2 / s**2, 1.0) * np.mean((student - target) ** 2) / (w**2 + (w - 1) ** 2))


@pytest.mark.parametrize("cfg_probability", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 8, 16])
def test_distillation_loss_equals_the_formulas(cfg_probability: float, steps: int) -> None:
    student, teacher = LinearUNet(0.2), LinearUNet(-0.1)
    loss = distillation(teacher, cfg_probability=cfg_probability, steps=steps)
    value = loss(student, BATCH)["loss"].item()
    n = len(BATCH.indices)
    call = student.calls[0]
    z, t, captions = call.z[-n:], call.t[-n:], call.embeddings[-n:].mean((1, 2))
    scales = guidance_of(loss)
    expected = [
        expected_loss(0.2, -0.1, z[i].double().numpy(), int(t[i]), captions[i].item(), scales[i], steps)
        for i in range(n)
    ]
    assert value == pytest.approx(np.mean(expected), rel=2e-4)


def guidance_of(loss: DistillationLoss) -> list[float]:
    w = loss._guidance(BATCH)
    return [1.0] * len(BATCH.indices) if w is None else w.flatten().tolist()


@pytest.mark.parametrize("steps", [1, 2, 8, 16])
def test_a_network_that_is_exact_at_both_step_sizes_has_no_loss(steps: int) -> None:
    """v = 0 everywhere means x = alpha z: two steps and one step then land apart, but a point mass agrees
    exactly.
    """

    class PointMass(LinearUNet):
        """eps = z / sigma and x = 0, so v = alpha z / sigma."""

        def forward(
            self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True
        ) -> tuple[Tensor]:
            return (SCHEDULE.alpha(timestep) / SCHEDULE.sigma(timestep) * sample,)

    value = distillation(PointMass(), steps=steps)(PointMass(), BATCH)["loss"].item()
    assert value < 1e-5


@pytest.mark.parametrize("many", [2, 4, 16])
def test_a_teacher_of_more_steps_goes_from_one_point_of_the_student_to_the_next(many: int) -> None:
    teacher = LinearUNet(-0.1)
    loss = replace(distillation(teacher, steps=2), teacher_steps=2 * many)
    loss(LinearUNet(0.2), BATCH)
    grid = [*grid_timesteps(2 * many, train_timesteps=1000), -1]
    assert len(teacher.calls) == many
    for first in range(len(BATCH.indices)):
        places = [grid.index(int(call.t[first])) for call in teacher.calls]
        assert places == list(range(places[0], places[0] + many)) and places[0] % many == 0
    if many == 2:
        same = distillation(LinearUNet(-0.1), steps=2)(LinearUNet(0.2), BATCH)["loss"]
        assert torch.equal(loss(LinearUNet(0.2), BATCH)["loss"], same)


def test_constant_gamma_takes_the_original_loss_as_it_is() -> None:
    loss = replace(distillation(LinearUNet(-0.1), gamma=0.7), dynamic_gamma=False)
    terms = loss(LinearUNet(0.2), BATCH)
    expected = terms["distillation"] + 0.7 * terms["original"]
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_guidance_of_one_equals_the_vanilla_loss() -> None:
    student, teacher = LinearUNet(0.2), LinearUNet(-0.1)
    vanilla = distillation(teacher)
    guided = DistillationLoss(teacher, sampling(), STEPS, 1.0, (1.0, 1.0), 0.0)
    assert guided(student, BATCH)["loss"].item() == pytest.approx(
        vanilla(student, BATCH)["loss"].item(), rel=1e-5
    )


# Mistakes of others.


def test_both_halves_see_the_same_noise_and_timestep() -> None:
    student, teacher = LinearUNet(0.2), LinearUNet(-0.1)
    distillation(teacher, cfg_probability=1.0)(student, BATCH)
    n = len(BATCH.indices)
    assert len(teacher.calls) == 2
    assert len(student.calls) == 1
    for call in (*teacher.calls, *student.calls):
        assert torch.equal(call.z[:n], call.z[n : 2 * n])
        assert torch.equal(call.t[:n], call.t[n : 2 * n])
        assert call.embeddings[:n].abs().max() == 0.0  # unconditional first
        assert call.embeddings[n : 2 * n].abs().min() > 0.0


def test_every_sample_has_its_own_scale_shared_by_teacher_and_student() -> None:
    loss = distillation(LinearUNet(-0.1), cfg_probability=1.0)
    scales = guidance_of(loss)
    assert len(set(scales)) == len(BATCH.indices)
    assert all(2.0 <= w < 14.0 for w in scales)
    # A w that was mixed up over the batch would give other losses than the samples have alone.
    alone = [
        loss(LinearUNet(0.2), Batch(BATCH.iteration, BATCH.indices[i : i + 1], BATCH.seed))["loss"].item()
        for i in range(len(BATCH.indices))
    ]
    together = loss(LinearUNet(0.2), BATCH)["loss"].item()
    assert together == pytest.approx(np.mean(alone), rel=1e-4)


def test_the_student_starts_on_its_own_grid_and_the_teacher_steps_on_the_finer_one() -> None:
    student, teacher = LinearUNet(), LinearUNet()
    coarse, fine = (grid_timesteps(n, train_timesteps=1000) for n in (STEPS, 2 * STEPS))
    for iteration in range(8):
        distillation(teacher)(student, Batch(iteration, BATCH.indices, 11))
    starts = torch.cat([call.t for call in student.calls]).tolist()
    assert set(starts) == set(coarse)
    for first, second in zip(teacher.calls[::2], teacher.calls[1::2], strict=True):
        assert set(first.t.tolist()) <= set(coarse)
        assert [fine.index(t) + 1 for t in first.t.tolist()] == [fine.index(t) for t in second.t.tolist()]


def test_the_target_is_the_inversion_of_both_steps_not_the_second_x_hat() -> None:
    loss = distillation(LinearUNet(-0.1))
    point = torch.zeros(8, dtype=torch.int64)
    start = loss.sampling.example(BATCH, name="x", t=loss.student_grid[point], drop_captions=False)
    target = loss.teacher_target(start, point, None)
    teacher = loss.teacher
    assert isinstance(teacher, LinearUNet)
    second = teacher.calls[1]
    (a, s), (a_end, s_end) = (alpha_sigma(t) for t in grid_timesteps(STEPS, train_timesteps=1000)[:2])
    (a_middle, s_middle) = alpha_sigma(int(second.t[0]))
    v = (-0.1 + second.embeddings.mean((1, 2)).reshape(-1, 1, 1, 1)) * second.z
    z_end = a_end * (a_middle * second.z - s_middle * v) + s_end * (s_middle * second.z + a_middle * v)
    # One DDIM step by way of the target leads from z to where the teacher's two have led.
    eps = (start.item.z - a * target) / s
    torch.testing.assert_close(a_end * target + s_end * eps, z_end, rtol=1e-4, atol=1e-5)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = LinearUNet(0.2), LinearUNet(-0.1)
    distillation(teacher, gamma=0.2)(student, BATCH)["loss"].backward()
    assert student.gain.grad is not None
    assert teacher.gain.grad is None


def test_a_guided_loss_is_as_large_as_that_of_its_branches_were_they_independent() -> None:
    """The mean square of w a - (w - 1) b for independent a and b of unit variance is w^2 + (w - 1)^2."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20_000, generator=generator)
    for w in (1.0, 2.0, 7.5, 14.0):
        size = (w * a - (w - 1) * b).square().mean()
        assert float(guidance_power(torch.tensor(w))) == pytest.approx(float(size), rel=0.03)
    assert float(guidance_power(torch.tensor(1.0))) == 1.0


# Mixing, L_ori, randomness.


def test_the_scales_fill_the_configured_range() -> None:
    loss = DistillationLoss(LinearUNet(), sampling(), STEPS, 1.0, (3.0, 3.5), 0.0)
    drawn = [loss._guidance(Batch(i, BATCH.indices, 0)) for i in range(50)]
    w = torch.cat([part.flatten() for part in drawn if part is not None])
    assert len(w) == 50 * len(BATCH.indices)
    assert 3.0 <= float(w.min()) < 3.01
    assert 3.49 < float(w.max()) < 3.5
    assert float(w.mean()) == pytest.approx(3.25, abs=0.03)


def test_the_original_loss_has_noise_of_its_own() -> None:
    student = LinearUNet()
    loss = distillation(LinearUNet(), gamma=0.2)
    n, noises = len(BATCH.indices), []
    for iteration in range(20):
        batch = Batch(iteration, BATCH.indices, 11)
        loss(student, batch)
        x = loss.sampling.data.latents("train", batch.indices, seed=11, iteration=iteration)
        call = student.calls[-1]
        for half in (slice(None, n), slice(n, None)):
            t = call.t[half]
            noises.append((call.z[half] - SCHEDULE.alpha(t) * x) / SCHEDULE.sigma(t))
    of_distillation, of_original = (torch.cat(noises[k::2]).flatten().double() for k in (0, 1))
    for noise in (of_distillation, of_original):
        assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)
        assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert float((of_distillation * of_original).mean()) == pytest.approx(0.0, abs=0.05)


def test_the_coin_is_one_per_iteration_and_has_the_configured_probability() -> None:
    loss = distillation(LinearUNet(), cfg_probability=0.1)
    flips = [loss._guidance(Batch(i, BATCH.indices, 0)) is not None for i in range(2000)]
    other_rank = [loss._guidance(Batch(i, BATCH.indices + 1, 0)) is not None for i in range(2000)]
    assert flips == other_rank
    assert np.mean(flips) == pytest.approx(0.1, abs=0.025)


def test_original_loss_draws_from_all_timesteps_and_shares_the_students_call() -> None:
    student = LinearUNet()
    loss = distillation(LinearUNet(), gamma=0.2)
    for iteration in range(20):
        loss(student, Batch(iteration, BATCH.indices, 11))
    assert len(student.calls) == 20
    drawn = torch.cat([call.t[8:] for call in student.calls])
    assert len(set(drawn.tolist()) - set(grid_timesteps(STEPS, train_timesteps=1000))) > 100
    assert drawn.min() < 100
    assert drawn.max() > 900


@pytest.mark.parametrize("gamma", [0.01, 0.2, 1.0])
def test_dynamic_gamma_gives_the_original_loss_its_share(gamma: float) -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = combined_loss(0.001 * a, b**2, gamma)
    total.backward()
    assert total.item() == pytest.approx((1 + gamma) * 0.002)
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.item() == pytest.approx(0.001)  # the ratio itself gets no gradient
    assert b.grad.item() == pytest.approx(gamma * (0.002 / 9.0) * 6.0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_dynamic_gamma_is_of_the_losses_of_all_ranks(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    asked: list[Tensor] = []
    others = torch.tensor([1.0, 4.0])
    monkeypatch.setattr(losses, "mean_over_ranks", lambda sizes: asked.append(sizes) or others)
    found = distillation(LinearUNet(-0.1), gamma=0.2)(LinearUNet(), replace(BATCH, ranks=ranks))
    own, original = found["distillation"], found["original"]
    assert len(asked) == ranks - 1
    share = 0.2 * (own / original if ranks == 1 else 1.0 / 4.0)
    assert found["loss"].item() == pytest.approx((own + share * original).item())


def test_draws_depend_on_the_samples_and_not_on_the_batch_around_them() -> None:
    student = LinearUNet()
    loss = distillation(LinearUNet(), gamma=0.2)
    loss(student, BATCH)
    loss(student, Batch(BATCH.iteration, BATCH.indices.flip(0), BATCH.seed))
    loss(student, Batch(BATCH.iteration + 1, BATCH.indices, BATCH.seed))
    one, flipped, later = (call.z[:8] for call in student.calls)
    assert torch.equal(one, flipped.flip(0))
    assert not torch.equal(one, later)


def test_loss_takes_nothing_from_the_global_generator() -> None:
    loss = distillation(LinearUNet(), cfg_probability=0.5, gamma=0.2)
    before = torch.get_rng_state()
    loss(LinearUNet(), BATCH)
    assert torch.equal(before, torch.get_rng_state())


def test_captions_are_dropped_only_without_guidance() -> None:
    for cfg_probability, dropped in ((0.0, True), (1.0, False)):
        student, teacher = LinearUNet(), LinearUNet()
        loss = DistillationLoss(teacher, sampling(0.5), STEPS, cfg_probability, (2.0, 14.0), 0.0)
        loss(student, BATCH)
        assert bool((teacher.calls[0].embeddings[-8:].abs().amax((1, 2)) == 0).any()) is dropped


def test_dropped_captions_become_the_empty_one() -> None:
    source = sampling(caption_dropout=0.25)
    batches = [Batch(i, torch.arange(64), 0) for i in range(10)]
    dropped = [
        source.any_timestep(batch, name="x").item.embeddings.abs().amax((1, 2)) == 0.0 for batch in batches
    ]
    assert torch.cat(dropped).float().mean().item() == pytest.approx(0.25, abs=0.06)


def test_velocity_loss_follows_the_base_only_where_it_is_trusted() -> None:
    model, base = LinearUNet(0.2), LinearUNet(0.5)
    indices = torch.arange(64)
    terms = VelocityLoss(base, sampling(), 0.1, 0.3)(model, Batch(0, indices, 0))
    call = model.calls[0]
    z, caption = call.z.double().numpy(), call.embeddings.mean((1, 2)).numpy()
    distances = []
    for i, t in enumerate(call.t.tolist()):
        a, s = alpha_sigma(t)
        target = ((0.5 + caption[i]) * z[i] - s * z[i]) / a
        distances.append(np.mean(((0.2 + caption[i]) * z[i] - target) ** 2) if a >= 0.3 else 0.0)
    assert 0 < sum(d == 0.0 for d in distances) < 64
    trusted = [place for place, distance in enumerate(distances) if distance]
    assert base.calls[0].t.tolist() == call.t[trusted].tolist()  # and is asked for nothing else
    assert terms["base"].item() == pytest.approx(np.mean(distances), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(terms["original"].item() + 0.1 * terms["base"].item())


def test_velocity_loss_where_no_sample_trusts_the_base_is_the_original_alone() -> None:
    base = LinearUNet()
    terms = VelocityLoss(base, sampling(), 0.1, 1.1)(LinearUNet(), BATCH)
    assert base.calls == [] and terms["base"].item() == 0.0 and terms["loss"] == terms["original"]


def test_velocity_loss_without_the_base_does_not_evaluate_it() -> None:
    base = LinearUNet()
    terms = VelocityLoss(base, sampling(), 0.0, 0.3)(LinearUNet(), BATCH)
    assert base.calls == []
    assert set(terms) == {"loss", "original"}
