"""The losses of velocity fine-tuning and step distillation (SnapFusion, arXiv 2306.00980v3, section 4, eq.
7-11).

Every draw (noise, timesteps, guidance scales, dropped captions, the coin) is keyed by seed, iteration and
global sample index, so that ranks and resumption do not change it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from artifacts_schema.data import SplitName
from steps.diffusion.ddim import walk
from steps.diffusion.parameterization import (
    guided,
    inverted_target,
    noisy,
    snr_weight,
    v_from_eps,
    v_from_x_eps,
    x_from_v,
)
from steps.diffusion.prediction import UNetInput, predict, predict_guided, predict_together
from steps.diffusion.schedule import NoiseSchedule
from steps.training.batch import Batch
from steps.training.group import mean_over_ranks
from steps.training.placement import sent
from steps.training.randomness import Samples, coin, keyed_integers, keyed_normal, keyed_uniform

SPLIT: SplitName = "train"
VALIDATION: SplitName = "validation"


class LatentData(Protocol):
    """What the losses need of prepared data; `steps.data.prepared.PreparedData` has it."""

    @property
    def empty_embedding(self) -> Tensor:
        """Text embedding of the empty caption, (1, tokens, width)."""

    def size(self, split: SplitName) -> int:
        """Number of captioned pictures."""

    def order(self, split: SplitName) -> Samples:
        """The same as what a training goes through."""

    def latents(self, split: SplitName, indices: Tensor, *, seed: int, iteration: int) -> Tensor:
        """Scaled latents (n, c, h, w) of unit variance."""

    def embeddings(self, split: SplitName, indices: Tensor) -> Tensor:
        """Text embeddings (n, tokens, width)."""

    def training_embeddings(
        self, split: SplitName, indices: Tensor, *, seed: int, iteration: int, drop_probability: float
    ) -> Tensor:
        """Text embeddings, some of them replaced by the empty caption's."""


@dataclass(frozen=True)
class Example:
    """A batch at its noise levels: clean latents x, noise eps, the network's input, alpha and sigma at t."""

    x: Tensor
    eps: Tensor
    item: UNetInput
    alpha: Tensor
    sigma: Tensor

    @property
    def v(self) -> Tensor:
        """The velocity that L_ori asks for."""
        return v_from_x_eps(x=self.x, eps=self.eps, alpha=self.alpha, sigma=self.sigma)

    def x_hat(self, v: Tensor) -> Tensor:
        """The clean latent that a predicted velocity means."""
        return x_from_v(z=self.item.z, v=v, alpha=self.alpha, sigma=self.sigma)


@dataclass(frozen=True)
class Sampling:
    """Draws training examples.

    `caption_dropout` is the share of captions replaced by the empty one, which keeps the unconditional branch
    trained.
    """

    data: LatentData
    schedule: NoiseSchedule
    caption_dropout: float
    device: torch.device
    split: SplitName = SPLIT

    def example(self, batch: Batch, *, name: str, t: Tensor, drop_captions: bool) -> Example:
        """Latents of the batch at timesteps t (n,), with the noise of stream `name`."""
        indices, seed, iteration = batch.indices, batch.seed, batch.iteration
        x = sent(self.data.latents(self.split, indices, seed=seed, iteration=iteration), self.device)
        noise = keyed_normal(
            tuple(x.shape[1:]), seed=seed, name=f"{name}.noise", iteration=iteration, indices=indices
        )
        eps, t = sent(noise, self.device), sent(t, self.device)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        z = noisy(x=x, eps=eps, alpha=alpha, sigma=sigma)
        embeddings = self.data.training_embeddings(
            self.split,
            indices,
            seed=seed,
            iteration=iteration,
            drop_probability=self.caption_dropout if drop_captions else 0.0,
        )
        return Example(x, eps, UNetInput(z, t, sent(embeddings, self.device)), alpha, sigma)

    def any_timestep(self, batch: Batch, *, name: str) -> Example:
        """An example with t uniform over all training timesteps and captions dropped, as L_ori wants it."""
        t = keyed_integers(
            0,
            self.schedule.train_timesteps,
            seed=batch.seed,
            name=f"{name}.timestep",
            iteration=batch.iteration,
            indices=batch.indices,
        )
        return self.example(batch, name=name, t=t, drop_captions=True)

    @property
    def empty_embedding(self) -> Tensor:
        """Text embedding of the empty caption, (1, tokens, width), on the device."""
        return sent(self.data.empty_embedding, self.device)


@dataclass(frozen=True)
class VelocityLoss:
    """L = L_ori + c * distance to the frozen eps base's own velocity, where alpha >= `min_alpha`.

    v = (eps - sigma z) / alpha magnifies the base's error by 1 / alpha (14.6 at t = 999 of Stable Diffusion);
    below `min_alpha` that error would become the target. L_ori = |v_hat - v|^2 over all t (paper section
    4.1).
    """

    base: nn.Module
    sampling: Sampling
    base_weight: float
    min_alpha: float

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named terms: loss, original, base."""
        example = self.sampling.any_timestep(batch, name="velocity")
        v_hat = predict(model, example.item)
        original = _mean_square(v_hat - example.v).mean()
        if self.base_weight == 0.0:
            return {"loss": original, "original": original}
        base = self._distance_to_base(v_hat, example)
        return {"loss": original + self.base_weight * base, "original": original, "base": base}

    def _distance_to_base(self, v_hat: Tensor, example: Example) -> Tensor:
        rows = (example.alpha >= self.min_alpha).flatten().nonzero().flatten()
        if not len(rows):
            return v_hat.new_zeros(())
        item = example.item.at(rows)  # the others would be computed for nothing
        with torch.no_grad():
            eps = predict(self.base, item)
            target = v_from_eps(z=item.z, eps=eps, alpha=example.alpha[rows], sigma=example.sigma[rows])
        return _mean_square(v_hat[rows] - target).sum() / len(v_hat)


@dataclass(frozen=True)
class DistillationLoss:
    """Step distillation from 2N to N steps: L = L_dstl + gamma * stop_gradient(L_dstl / L_ori) * L_ori.

    The teacher makes two DDIM steps on its 2N-step grid (more on that of `teacher_steps`), t -> t' -> t'', starting on a
    point of the student's N-step grid; the student's x_hat at t must equal the x that reaches z_t'' in one step (eq.
    7-9). With probability `cfg_probability`, one coin per iteration, both teacher steps and the student are guided by
    the same w, drawn per sample from `cfg_range` (eq. 10, 11), and each sample's loss is divided by
    `guidance_power(w)`. L_ori draws t over all training timesteps. gamma's ratio is that of each micro-batch,
    over all ranks: that of a whole step is known only after its last forward pass.
    """

    teacher: nn.Module
    sampling: Sampling
    student_steps: int
    cfg_probability: float
    cfg_range: tuple[float, float]
    gamma: float
    dynamic_gamma: bool = True  # False: gamma times L_ori as it is
    teacher_steps: int | None = None  # a multiple of the student's; None: twice as many

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named terms: loss, distillation, original, and cfg (1 in a guided iteration)."""
        point = keyed_integers(
            0,
            self.student_steps,
            seed=batch.seed,
            name="distillation.point",
            iteration=batch.iteration,
            indices=batch.indices,
        )
        w = self._guidance(batch)
        start = self.sampling.example(
            batch, name="distillation", t=self.student_grid[point], drop_captions=w is None
        )
        target = self.teacher_target(start, point, w)
        original = self.sampling.any_timestep(batch, name="original") if self.gamma > 0.0 else None
        v_hat, original_v_hat = self._student(model, start, w, original)
        weight = snr_weight(alpha=start.alpha, sigma=start.sigma).flatten()
        if w is not None:
            weight = weight / guidance_power(w).flatten()
        distillation = (weight * _mean_square(start.x_hat(v_hat) - target)).mean()
        terms = {"distillation": distillation, "cfg": torch.tensor(float(w is not None))}
        if original is None or original_v_hat is None:
            return {"loss": distillation, **terms}
        l_ori = _mean_square(original_v_hat - original.v).mean()
        if self.dynamic_gamma:
            sizes = mean_over_ranks(torch.stack((distillation, l_ori))) if batch.ranks > 1 else None
            loss = combined_loss(distillation, l_ori, self.gamma, sizes)
        else:
            loss = distillation + self.gamma * l_ori
        return {"loss": loss, **terms, "original": l_ori}

    @property
    def student_grid(self) -> Tensor:
        """Timesteps of the student's steps, (student_steps,)."""
        return self.sampling.schedule.grid(self.student_steps)

    @torch.no_grad()
    def teacher_target(self, start: Example, point: Tensor, w: Tensor | None) -> Tensor:
        """x~ of eq. 9 for examples at the student's grid points `point` (n,); guided where w is given."""
        schedule, z = self.sampling.schedule, start.item.z
        # The student's point k is the teacher's point 2k, or `many` k.
        steps = self.teacher_steps or 2 * self.student_steps
        many = steps // self.student_steps
        points = schedule.grid_to_clean(steps)[many * point + torch.arange(many + 1).unsqueeze(1)]

        def network(z: Tensor, t: Tensor) -> Tensor:
            item = UNetInput(z, t, start.item.embeddings)
            if w is None:
                return predict(self.teacher, item)
            return predict_guided(self.teacher, item, empty_embedding=self.sampling.empty_embedding, w=w)

        end = walk(schedule, network, z=z, points=points, kind="v_prediction")
        t_end = points[-1].to(z.device)
        return inverted_target(
            z=z,
            z_end=end,
            alpha=start.alpha,
            sigma=start.sigma,
            alpha_end=schedule.alpha(t_end),
            sigma_end=schedule.sigma(t_end),
        )

    def _student(
        self, model: nn.Module, start: Example, w: Tensor | None, original: Example | None
    ) -> tuple[Tensor, Tensor | None]:
        """The student's (guided) v at the start and its v for L_ori, from one call on everything."""
        inputs = [start.item]
        if w is not None:
            inputs.insert(0, start.item.with_embeddings(self.sampling.empty_embedding))
        if original is not None:
            inputs.append(original.item)
        outputs = predict_together(model, inputs)
        original_v_hat = outputs.pop() if original is not None else None
        if w is None:
            return outputs[0], original_v_hat
        return guided(conditional=outputs[1], unconditional=outputs[0], w=w), original_v_hat

    def _guidance(self, batch: Batch) -> Tensor | None:
        """One w per sample, shape (n, 1, 1, 1), in a guided iteration; None in a vanilla one (eq. 11)."""
        if not coin(
            self.cfg_probability, seed=batch.seed, name="distillation.cfg", iteration=batch.iteration
        ):
            return None
        w = keyed_uniform(
            *self.cfg_range,
            seed=batch.seed,
            name="distillation.w",
            iteration=batch.iteration,
            indices=batch.indices,
        )
        return sent(w.reshape(-1, 1, 1, 1), self.sampling.device)


def guidance_power(w: Tensor) -> Tensor:
    """w^2 + (w - 1)^2: how much larger the mean square of a guided v is than that of its branches, were these
    independent; 1 at w = 1.

    d(guided)/d(conditional) = w and d(guided)/d(unconditional) = -(w - 1) multiply the residual and, once more, the
    gradient. Undivided, the few guided iterations would own clipping and Adam's second moment (ours).
    """
    return w.square() + (w - 1.0).square()


def combined_loss(
    distillation: Tensor, original: Tensor, gamma: float, sizes: Tensor | None = None
) -> Tensor:
    """L_dstl + gamma * stop_gradient(L_dstl / L_ori) * L_ori (paper section 5.2: L_ori rescaled to L_dstl's
    size). `sizes` (2,) are the two over more samples than these.
    """
    size, of = (distillation, original) if sizes is None else sizes
    scale = (size / of.clamp(min=1e-12)).detach()
    return distillation + gamma * scale * original


def _mean_square(difference: Tensor) -> Tensor:
    """Mean square over all but the batch axis, shape (n,)."""
    return difference.square().flatten(1).mean(1)
