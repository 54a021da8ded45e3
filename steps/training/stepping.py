"""Optimizer steps: what every rank of a training does. All else, from the moving average to checkpoints, is rank 0's."""

import math
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from steps.files.errors import NonFiniteLossError
from steps.training.batch import Batch, LossFunction
from steps.training.group import mean_terms
from steps.training.outcome import Part
from steps.training.pace import learning_rate_factor
from steps.training.placement import compiled, placed
from steps.training.randomness import Samples, epoch_indices
from steps.training.recomputation import set_recomputation


@dataclass
class Work:
    """What a rank works on: all that decides its steps. `optimizer` is the state of a training that goes on, by parameter.

    `batch_size` is that of all ranks together, and must be divisible by their number.
    """

    model: nn.Module
    loss: LossFunction
    part: Part
    samples: Samples
    seed: int
    device: torch.device
    iteration: int = 0
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    deterministic: bool = field(default_factory=torch.are_deterministic_algorithms_enabled)


class Stepper:
    """One rank's model and optimizer."""

    def __init__(self, work: Work) -> None:
        self.work, self.training = work, work.part.training
        self.device = work.device
        self.bare_model = placed(work.model, self.device).train()
        self.parameters = {n: p for n, p in self.bare_model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=self.training.learning_rate,
            betas=(0.9, self.training.adam_beta2),
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self.restore(work.iteration, work.optimizer)

    def connect(self) -> None:
        """Place the model among the ranks that there are now."""
        set_recomputation(self.bare_model, self.training.gradient_checkpointing)
        # A skipped unit has no gradient, here as on one rank: to touch it with a zero would decay and move its weights.
        ranks = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", kwargs_handlers=[ranks])
        self.model: nn.Module = self.accelerator.prepare_model(self.bare_model)
        if self.training.compile:
            self.model = compiled(self.model, vars(self.work.loss).values())

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """By parameter; empty before the first step."""
        return {
            name: {key: torch.as_tensor(value) for key, value in self.optimizer.state[parameter].items()}
            for name, parameter in self.parameters.items()
        }

    def restore(self, iteration: int, optimizer: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from there."""
        self.iteration = iteration
        for name, values in optimizer.items():
            for key, value in values.items():
                # As the optimizer would make it: beside the parameter and laid out like it, its count a number alone.
                like = value.to(self.device) if key == "step" else torch.empty_like(self.parameters[name])
                self.optimizer.state[self.parameters[name]][key] = like.copy_(value)

    def step(self, stop: threading.Event) -> list[dict[str, float]] | None:
        """One optimizer step; returns the terms of every micro-batch, means over the ranks. None when `stop` was set before
        the last of them: what they have added is dropped, and the state is that of the last whole iteration.
        """
        config = self.training
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(self.iteration, config, self.work.part.iterations.start)
            group["lr"] = config.learning_rate * factor
        found: list[dict[str, Tensor]] = []
        for micro in range(config.accumulation):
            if stop.is_set():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            is_last = micro == config.accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                found.append(self.backward(self.batch(micro)))
        terms = self.read(found)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1
        return terms

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradient of one micro-batch; returns its loss terms, which no one has waited for."""
        config = self.training
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            terms = self.work.loss(self.model, batch)
        self.accelerator.backward(terms["loss"] / config.accumulation)
        return {name: term.detach() for name, term in terms.items()}

    def read(self, found: list[dict[str, Tensor]]) -> list[dict[str, float]]:
        """Clip the gradient's norm; returns the terms of all micro-batches as numbers, means over the ranks.

        A GPU is waited for here, once a step: until then the CPU draws the next micro-batches while it computes. Raises
        NonFiniteLossError before the optimizer sees a loss or a gradient that is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.training.gradient_clip)
        terms = [value for row in found for value in row.values()]
        *numbers, gradient = torch.stack([value.to(self.device) for value in (*terms, norm)]).tolist()
        following = iter(numbers)
        rows = [{name: next(following) for name in row} for row in found]
        for micro, row in enumerate(rows):
            if not math.isfinite(row["loss"]):
                raise self.not_finite(f"loss is {row['loss']}", [micro])
        rows = mean_terms(rows, self.device)
        if not math.isfinite(gradient):
            raise self.not_finite("gradient is not finite", range(len(rows)))
        return rows

    def batch(self, micro: int) -> Batch:
        """This rank's samples of a micro-batch of the present iteration; ranks take every world-size-th one."""
        size = self.training.batch_size
        start = (self.iteration * self.training.accumulation + micro) * size
        indices = epoch_indices(samples=self.work.samples, start=start, count=size, seed=self.work.seed)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return Batch(self.iteration, indices[rank::world], self.work.seed, micro, world)

    def not_finite(self, what: str, micros: Iterable[int]) -> NonFiniteLossError:
        """An error with the step and the samples of these micro-batches."""
        samples = [index for micro in micros for index in self.batch(micro).indices.tolist()]
        return NonFiniteLossError(
            f"the {what} at iteration {self.iteration} (samples {samples[:8]}...); "
            "the last good checkpoint stays; lower the learning rate or look at these samples"
        )
