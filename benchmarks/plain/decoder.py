"""(b) Decoder distillation against a loop that decodes with the full decoder in every step."""

import copy
import threading
from functools import partial
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from artifacts_schema.distillation_configs import DecoderDistillationConfig
from artifacts_schema.stage_configs import TrainingConfig
from benchmarks.plain.setting import SEED, Setting, agreement, gains, ratio, speed, timed
from benchmarks.published import Metric
from steps.inputs.context import StageContext
from steps.inputs.latent_pool import PoolSettings, build_pool
from steps.models.base import BaseModel
from steps.stages.decoder_distillation import PictureLoss, first_decoder
from steps.training.ema import ExponentialMovingAverage
from steps.training.outcome import Part
from steps.training.stepping import Stepper, Work

_LATENTS, _DRAWN_IN = 32, 2  # how the latents came to be makes no difference here
_CAUSES = {
    "pool": "the full decoder's pictures kept, not made in every step",
    "optimizer": "fused AdamW, moving average over all parameters at once",
    "ours": "all else of the product's step",
}


class PlainLoop:
    """Teacher and student decode in every step, on latents at hand; with `pictures` the teacher's are given."""

    def __init__(
        self, base: BaseModel, small: nn.Module, latents: Tensor, pictures: Tensor | None, *, optimizer: bool
    ) -> None:
        self.vae, self.latents, self.pictures = (
            copy.deepcopy(base.vae).requires_grad_(False),
            latents,
            pictures,
        )
        self.student: Any = copy.deepcopy(small).train().requires_grad_(True)
        parameters = list(self.student.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=optimizer or None)
        self.ema = EMAModel(parameters, decay=0.999, foreach=optimizer)

    def step(self, indices: Tensor) -> float:
        """One optimizer step; returns the loss."""
        latents = self.latents[indices]
        if self.pictures is None:
            with torch.no_grad():
                target = self.vae.decode(latents).sample
        else:
            target = self.pictures[indices]
        loss = torch.nn.functional.mse_loss(self.student(latents), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.student.parameters())
        return loss.detach().item()


def measure(setting: Setting) -> list[Metric]:
    """Speed-up over the plain loop, split by cause."""
    base = setting.base()
    data = setting.data(base)
    context = StageContext("decoder_distillation", setting.store, setting.folder / "work", SEED)
    pool = build_pool(base, data, PoolSettings(_LATENTS, _DRAWN_IN, 3.0), context)
    latents, pictures = pool.rows(torch.arange(_LATENTS))
    small = first_decoder(base, DecoderDistillationConfig(), SEED)
    variants = {"plain": (None, False), "pool": (pictures, False), "optimizer": (pictures, True)}
    plain = {
        name: PlainLoop(base, small, latents, kept, optimizer=fused)
        for name, (kept, fused) in variants.items()
    }
    training = TrainingConfig(
        iterations=1000, batch_size=setting.batch, learning_rate=1e-5, schedule="constant"
    )
    device = torch.device("cpu")
    work = Work(small, PictureLoss(pool, device), Part(training, range(1000)), _LATENTS, SEED, device)
    stepper, never = Stepper(work), threading.Event()
    stepper.connect()
    average = ExponentialMovingAverage(stepper.bare_model, 0.999)

    def ours() -> float:
        stepper.iteration = 0
        terms = stepper.step(never)
        average.update(stepper.bare_model)
        return terms[0]["loss"] if terms else float("nan")

    indices = stepper.batch(0).indices
    mine = ours()
    # Kept pictures are rounded to 2^-11 of their range.
    same = agreement(
        "training.decoder.loss_difference", [(loop.step(indices), mine) for loop in plain.values()], 1e-4
    )
    times = timed(
        setting, {**{name: partial(loop.step, indices) for name, loop in plain.items()}, "ours": ours}
    )
    note = f"batch {setting.batch}, fp32, {torch.get_num_threads()} threads; the pool is made before, each latent once"
    return [
        same,
        ratio("training.decoder_speedup", times["plain"], times["ours"], note),
        *gains("training.decoder", times, _CAUSES),
        speed("training.decoder.plain", times["plain"], setting.batch),
        speed("training.decoder.ours", times["ours"], setting.batch),
        pool_share(base, latents, times, setting),
    ]


def pool_share(base: BaseModel, latents: Tensor, times: dict[str, list[float]], setting: Setting) -> Metric:
    """The same with the full decoder's work on the pool: in the preset `openmoji` every latent is visited 33 times."""
    visits = 200 * 16 / 96

    @torch.no_grad()
    def decode() -> None:
        base.vae.decode(latents[: setting.batch])

    once = timed(setting, {"decode": decode})["decode"]
    whole = [step + full / visits for step, full in zip(times["ours"], once, strict=True)]
    return ratio(
        "training.decoder_speedup_with_pool",
        times["plain"],
        whole,
        "the pool's pictures shared out over 33 visits",
    )
