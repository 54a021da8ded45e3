"""Memory of a training, told from shapes alone: what is alive at the peak of one optimizer step.

A model without weights runs forward and backward on torch's meta device; every storage that is made is counted from its
birth to its death. So recomputation (`gradient_checkpointing`), bfloat16 copies of weights and what several forward
passes keep at once are in the number; the allocator's own waste and the GPU libraries' workspace are not, for which
`RESERVE` is added.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from artifacts_schema.stage_configs import TrainingConfig
from steps.training.recomputation import set_recomputation

RESERVE = 1.10
"""Factor on what is counted: fragmentation, and what libraries keep for themselves. Ours; to be measured on a GPU."""

PRECISIONS = ("fp32", "bf16")


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is entered: `now` alive, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in tree_leaves(made):
            if isinstance(item, Tensor):
                self._note(item.untyped_storage())
        return made

    def know(self, model: nn.Module) -> None:
        """What a model holds already is none of what is made."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = tensor

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes()
        self._known[place] = weakref.finalize(storage, self._forget, place, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, place: int, size: int) -> None:
        self._known.pop(place, None)
        self.now -= size


def step_bytes(
    model: nn.Module, forward: Callable[[int], Tensor], batch: int, *, precision: str, recompute: bool
) -> int:
    """Bytes that one forward and backward pass of `batch` samples needs at its peak besides the weights, gradients
    included. `model` lies on the meta device, `forward` calls it.
    """
    set_recomputation(model.train().requires_grad_(True), recompute)
    counter = LiveBytes()
    counter.know(model)
    try:
        with _flash_attention(), counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = forward(batch).float().square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
    finally:
        model.zero_grad(set_to_none=True)
        set_recomputation(model, False)
    return counter.peak


def step_costs(name: str, model: nn.Module, forward: Callable[[int], Tensor]) -> dict[str, float]:
    """Bytes of a training step besides weights, moments and average, as a line over the batch size.

    Keys: `<name>_<precision>[_recomputed]_bytes` of one more sample, and `..._fixed_bytes` of the step itself.
    """
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        for recompute in (False, True):
            one, three = (
                step_bytes(model, forward, batch, precision=precision, recompute=recompute)
                for batch in (1, 3)
            )
            key = cost_key(name, precision=precision, recompute=recompute)
            slope = (three - one) / 2
            found |= {f"{key}_bytes": slope, f"{key}_fixed_bytes": one - slope}
    return found


def cost_key(name: str, *, precision: str, recompute: bool) -> str:
    """The name of a step's costs."""
    return f"{name}_{precision}" + ("_recomputed" if recompute else "")


def training_key(name: str, training: TrainingConfig) -> str:
    """The name of the costs of a training's step."""
    return cost_key(name, precision=training.precision, recompute=training.gradient_checkpointing)


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Attention that keeps queries, keys, values and its result, as the kernels do that are used on real devices.

    On the meta device torch would take the plain formula, whose tokens x tokens matrix no device of ours ever holds.
    """
    functional: Any = nn.functional
    real = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (item.to(torch.bfloat16) for item in (query, key, value))
    result: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    """Shapes only."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])
