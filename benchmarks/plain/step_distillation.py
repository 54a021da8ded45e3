"""(a) Step distillation against a loop written the way diffusers' training examples are (train_text_to_image.py,
train_lcm_distill_sd_wds.py): encoders in the loop, one network call a purpose, AdamW and EMAModel as they come.

Both sides take the same draws. What makes the difference is added to the plain loop cause by cause.
"""

import copy
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional

from artifacts_schema.stage_configs import TrainingConfig
from benchmarks.plain.setting import SEED, Setting, agreement, gains, mixed, ratio, schedule_of, speed, timed
from benchmarks.published import ROOT, Metric
from steps.data.prepared import PreparedData
from steps.diffusion.losses import DistillationLoss, Sampling
from steps.models.base import BaseModel, token_ids
from steps.training.batch import Batch
from steps.training.ema import ExponentialMovingAverage
from steps.training.outcome import Part
from steps.training.placement import frozen
from steps.training.randomness import keyed_integers, keyed_normal, keyed_uniform
from steps.training.stepping import Stepper, Work

STEPS, DROPOUT, GAMMA, RANGE, GUIDED = 8, 0.1, 0.2, (2.0, 14.0), 0.1
_CAUSES = {
    "cached": "latents and text embeddings prepared once, not encoded in every step",
    "together": "guided halves, and the student's two batches, in one call each",
    "optimizer": "fused AdamW, moving average over all parameters at once",
    "ours": "all else of the product's step",
}


@dataclass(frozen=True)
class Draws:
    """What chance decides of one step, for a batch of n pictures."""

    indices: Tensor
    vae: Tensor
    point: Tensor
    noise: Tensor
    other_t: Tensor
    other_noise: Tensor
    dropped: Tensor
    w: Tensor | None


def draws(batch: Batch, shape: tuple[int, int, int], timesteps: int, *, guided: bool) -> Draws:
    """The product's own draws."""
    keys: dict[str, Any] = {"seed": batch.seed, "iteration": batch.iteration, "indices": batch.indices}
    return Draws(
        batch.indices,
        keyed_normal(shape, name="vae", **keys),
        keyed_integers(0, STEPS, name="distillation.point", **keys),
        keyed_normal(shape, name="distillation.noise", **keys),
        keyed_integers(0, timesteps, name="original.timestep", **keys),
        keyed_normal(shape, name="original.noise", **keys),
        keyed_uniform(0.0, 1.0, name="caption_dropout", **keys) < DROPOUT,
        keyed_uniform(*RANGE, name="distillation.w", **keys).reshape(-1, 1, 1, 1) if guided else None,
    )


class PlainLoop:
    """The loop of an example; every switch takes over one thing that the product does."""

    def __init__(
        self, base: BaseModel, data: PreparedData, unet: Any, *, cached: bool, together: bool, optimizer: bool
    ) -> None:
        self.base, self.data, self.cached, self.together = base, data, cached, together
        self.teacher = copy.deepcopy(unet).eval().requires_grad_(False)
        self.student = copy.deepcopy(unet).train().requires_grad_(True)
        self.scheduler = DDIMScheduler.from_config(base.scheduler_config)
        # alpha and sigma at every timestep; at -1, the last entry, those of the clean latent
        power = torch.cat([self.scheduler.alphas_cumprod, torch.ones(1)])
        self.alpha, self.sigma = power.sqrt(), (1 - power).sqrt()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=0.01, fused=optimizer or None
        )
        self.ema = EMAModel(
            self.student.parameters(), decay=0.999, model_cls=UNet2DConditionModel, foreach=optimizer
        )
        captions = data.captions("train")
        self.input_ids = token_ids(base.tokenizer, captions)
        self.empty_ids = token_ids(base.tokenizer, [""])

    def encode(self, draw: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled latents, the captions' embeddings and the empty caption's."""
        if self.cached:
            indices = draw.indices
            latents = self.data.latents("train", indices, seed=SEED, iteration=self.iteration)
            return latents, self.data.embeddings("train", indices), self.data.empty_embedding
        pixels = self.data.images("train", draw.indices).float() / 127.5 - 1.0
        distribution = self.base.vae.encode(pixels).latent_dist
        latents = (distribution.mean + distribution.std * draw.vae) * self.base.vae.config.scaling_factor
        encoder = self.base.text_encoder
        return latents, encoder(self.input_ids[draw.indices])[0], encoder(self.empty_ids)[0]

    def call(self, unet: Any, z: Tensor, t: Tensor, text: Tensor, empty: Tensor, w: Tensor | None) -> Tensor:
        """A guided or plain prediction."""
        if w is None:
            return unet(z, t, encoder_hidden_states=text).sample  # type: ignore[no-any-return]
        nothing = empty.expand(len(z), -1, -1)
        if self.together:
            both = unet(
                torch.cat([z, z]), torch.cat([t, t]), encoder_hidden_states=torch.cat([nothing, text])
            )
            unconditional, conditional = both.sample.chunk(2)
        else:
            conditional = unet(z, t, encoder_hidden_states=text).sample
            unconditional = unet(z, t, encoder_hidden_states=nothing).sample
        return unconditional + w * (conditional - unconditional)  # type: ignore[no-any-return]

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma (n, 1, 1, 1) at timesteps t."""
        return self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)

    @torch.no_grad()
    def target(self, z: Tensor, times: list[Tensor], text: Tensor, empty: Tensor, w: Tensor | None) -> Tensor:
        """Two DDIM steps of the teacher, and the x that takes one."""
        here = z
        for t, t_next in zip(times, times[1:], strict=False):
            v = self.call(self.teacher, here, t, text, empty, w)
            (a, s), (a_next, s_next) = self.at(t), self.at(t_next)
            x, eps = a * here - s * v, s * here + a * v
            here = a_next * x + s_next * eps
        (a, s), (a_end, s_end) = self.at(times[0]), self.at(times[-1])
        return (here - s_end / s * z) / (a_end - s_end / s * a)

    def step(self, iteration: int, indices: Tensor, *, guided: bool) -> float:
        """One optimizer step; returns the loss."""
        self.iteration = iteration
        shape = self.base.latent_shape
        timesteps = int(self.scheduler.config.num_train_timesteps)
        draw = draws(Batch(iteration, indices, SEED), shape, timesteps, guided=guided)
        with torch.no_grad():
            latents, text, empty = self.encode(draw)
        dropped = torch.where(draw.dropped.view(-1, 1, 1), empty, text)
        spacing = timesteps / (2 * STEPS)
        times = [
            torch.tensor([round(timesteps - (2 * k + j) * spacing) - 1 for k in draw.point.tolist()])
            for j in range(3)
        ]
        prompts = text if guided else dropped
        z = self.scheduler.add_noise(latents, draw.noise, times[0])
        target = self.target(z, times, prompts, empty, draw.w)
        z_other = self.scheduler.add_noise(latents, draw.other_noise, draw.other_t)
        a_other, s_other = self.at(draw.other_t)
        v_other = a_other * draw.other_noise - s_other * latents
        v, v_hat_other = self.forward(z, times[0], prompts, empty, draw.w, (z_other, draw.other_t, dropped))
        a, s = self.at(times[0])
        weight = (a**2 / s**2).clamp(min=1.0)
        if draw.w is not None:
            weight = weight / (draw.w**2 + (draw.w - 1) ** 2)
        distillation = (weight * (a * z - s * v - target) ** 2).mean()
        original = functional.mse_loss(v_hat_other, v_other)
        loss = distillation + GAMMA * (distillation / original).detach() * original
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.student.parameters())
        return loss.detach().item()

    def forward(  # noqa: PLR0913 - what a call takes
        self,
        z: Tensor,
        t: Tensor,
        text: Tensor,
        empty: Tensor,
        w: Tensor | None,
        other: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The student's v where it is distilled and its v for the original loss."""
        if not self.together:
            return self.call(self.student, z, t, text, empty, w), self.student(*other).sample
        parts = (
            [(z, t, text), other]
            if w is None
            else [(z, t, empty.expand(len(z), -1, -1)), (z, t, text), other]
        )
        outputs = self.student(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))).sample.chunk(
            len(parts)
        )
        if w is None:
            return outputs[0], outputs[1]
        return outputs[0] + w * (outputs[1] - outputs[0]), outputs[2]


class Ours:
    """The product's optimizer step and moving average, as `steps.training.loop` calls them."""

    def __init__(self, base: BaseModel, data: PreparedData, unet: Any, batch: int) -> None:
        device = torch.device("cpu")
        teacher = frozen(copy.deepcopy(unet), device, "fp32")
        sampling = Sampling(data, schedule_of(base), DROPOUT, device)
        vanilla = DistillationLoss(teacher, sampling, STEPS, 0.0, RANGE, GAMMA)
        self.losses = {False: vanilla, True: replace(vanilla, cfg_probability=1.0)}
        training = TrainingConfig(
            iterations=1000, batch_size=batch, learning_rate=1e-5, schedule="constant", warmup_iterations=0
        )
        student = copy.deepcopy(unet).requires_grad_(True)
        work = Work(student, vanilla, Part(training, range(1000)), data.size("train"), SEED, device)
        self.stepper = Stepper(work)
        self.stepper.connect()
        self.ema = ExponentialMovingAverage(student, 0.999)
        self.never = threading.Event()

    def step(self, iteration: int, *, guided: bool) -> float:
        """One optimizer step; returns the loss."""
        self.stepper.iteration, self.stepper.work.loss = iteration, self.losses[guided]
        terms = self.stepper.step(self.never)
        self.ema.update(self.stepper.bare_model)
        return terms[0]["loss"] if terms else float("nan")

    def indices(self, iteration: int) -> Tensor:
        """Which pictures an iteration takes."""
        self.stepper.iteration = iteration
        return self.stepper.batch(0).indices


def v_unet(setting: Setting, base: BaseModel) -> Any:
    """The shipped v UNet; the micro base's own stands for it."""
    if setting.quick:
        return base.unet
    return UNet2DConditionModel.from_pretrained(
        ROOT / "assets/warm_starts/velocity", torch_dtype=torch.float32
    )


def measure(setting: Setting) -> list[Metric]:
    """Speed-up over the plain loop, split by cause; losses of both sides."""
    base = setting.base()
    data, unet = setting.data(base), v_unet(setting, base)
    ours = Ours(base, data, unet, setting.batch)
    switches = {"plain": (0, 0, 0), "cached": (1, 0, 0), "together": (1, 1, 0), "optimizer": (1, 1, 1)}
    plain = {
        name: PlainLoop(base, data, unet, cached=bool(c), together=bool(t), optimizer=bool(o))
        for name, (c, t, o) in switches.items()
    }
    losses = []
    for iteration, guided in enumerate((False, True)):
        indices = ours.indices(iteration)
        mine = ours.step(iteration, guided=guided)
        losses += [(loop.step(iteration, indices, guided=guided), mine) for loop in plain.values()]
    same = agreement("training.step_distillation.loss_difference", losses, 1e-4)
    times: dict[bool, dict[str, list[float]]] = {}
    for guided in (False, True):
        calls: dict[str, Any] = {
            name: partial(loop.step, 2, ours.indices(2), guided=guided) for name, loop in plain.items()
        }
        calls["ours"] = partial(ours.step, 2, guided=guided)
        times[guided] = timed(setting, calls)
    both = {name: mixed(times[False][name], times[True][name], GUIDED) for name in times[False]}
    note = f"batch {setting.batch}, fp32, {torch.get_num_threads()} threads; a tenth of the steps guided"
    return [
        same,
        ratio("training.step_distillation_speedup", both["plain"], both["ours"], note),
        ratio(
            "training.step_distillation_speedup_cached",
            both["cached"],
            both["ours"],
            "plain loop on cached data",
        ),
        *gains("training.step_distillation", both, _CAUSES),
        speed("training.step_distillation.plain", both["plain"], setting.batch),
        speed("training.step_distillation.ours", both["ours"], setting.batch),
    ]
