"""The best state of a training by a validation measure, kept on disk."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from steps.training.outcome import IntervalHook


class Best:
    """Keeps the weights of the best offer; goes on from what `folder` already holds."""

    def __init__(self, folder: Path, measure: str, *, highest: bool) -> None:
        self.folder, self.measure, self.highest = folder, measure, highest
        self.iteration, self.value = -1, float("nan")
        if self._note.is_file():
            found = json.loads(self._note.read_text())
            self.iteration, self.value = int(found["iteration"]), float(found[measure])

    @property
    def _note(self) -> Path:
        return self.folder / "best.json"

    def watch(self, measured: Callable[[nn.Module], float], *, every: int) -> IntervalHook:
        """A hook that measures the model every so many iterations, and keeps the best."""

        def look(iteration: int, model: nn.Module) -> dict[str, float]:
            if iteration % every:
                return {}
            value = measured(model)
            self.offer(iteration, value, model)
            return {self.measure: value}

        return look

    def offer(self, iteration: int, value: float, model: nn.Module) -> None:
        """Keep the model when `value` is better than all before, the latest of equals."""
        if self.iteration >= 0 and (value < self.value if self.highest else value > self.value):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = f"best-{iteration}.safetensors"
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, self.folder / weights
        )
        draft = self._note.with_suffix(".tmp")
        draft.write_text(json.dumps({"iteration": iteration, self.measure: value, "weights": weights}))
        os.replace(draft, self._note)
        self.iteration, self.value = iteration, value
        for old in self.folder.glob("best-*.safetensors"):
            if old.name != weights:
                old.unlink()

    def load(self, model: nn.Module) -> dict[str, float]:
        """Put the best state into the model; returns its iteration and value. The model stays when there is none."""
        if self.iteration < 0:
            return {}
        model.load_state_dict(load_file(self.folder / json.loads(self._note.read_text())["weights"]))
        return {"best_iteration": float(self.iteration), f"best_{self.measure}": self.value}
