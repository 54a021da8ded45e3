"""Makes the embedded base model, its evaluators and its warm starts from a clean checkout.

    python flows/pretrain_flow.py run
    python flows/pretrain_flow.py --config config configs/pretrain.toml run
    python flows/pretrain_flow.py resume

Every step runs one stage of `steps.pretraining.stages`, which goes on from its checkpoints and
skips what is done.
"""

# ruff: noqa: E402 - the environment must be prepared before metaflow is imported
from flows.environment import PROJECT_ROOT, prepare

prepare()

from typing import Any

from metaflow import Config, FlowSpec, step

DEFAULT_CONFIG = str(PROJECT_ROOT / "configs" / "pretrain.toml")


def _parse(text: str) -> dict[str, Any]:
    """Validate the configuration before any step runs."""
    from artifacts_schema.pretraining import load_pretraining_config

    return load_pretraining_config(text).model_dump(mode="json")


class PretrainFlow(FlowSpec):
    """One stage after the other: on few cores, trainings side by side would only slow each other down."""

    config = Config("config", default=DEFAULT_CONFIG, parser=_parse, help="TOML file, configs/pretrain.toml")

    @step
    def start(self) -> None:
        """Learn the tokenizer from the train captions."""
        self.tokenizer = _run(self, "tokenizer")
        self.next(self.openclip_signal)

    @step
    def openclip_signal(self) -> None:
        """Train the OpenCLIP model whose text tower conditions the base."""
        self.signal = _run(self, "openclip_signal")
        self.next(self.autoencoder)

    @step
    def autoencoder(self) -> None:
        """Train the autoencoder."""
        self.autoencoder_summary = _run(self, "autoencoder")
        self.next(self.unet)

    @step
    def unet(self) -> None:
        """Train the eps-prediction UNet and write the base."""
        self.unet_summary = _run(self, "unet")
        self.next(self.openclip_measure)

    @step
    def openclip_measure(self) -> None:
        """Train the OpenCLIP model that only measures."""
        self.measure = _run(self, "openclip_measure")
        self.next(self.velocity_warm_start)

    @step
    def velocity_warm_start(self) -> None:
        """Fine-tune the base to v-prediction."""
        self.velocity = _run(self, "velocity_warm_start")
        self.next(self.robust_warm_start)

    @step
    def robust_warm_start(self) -> None:
        """Train the v model with blocks skipped at random."""
        self.robust = _run(self, "robust_warm_start")
        self.next(self.end)

    @step
    def end(self) -> None:
        """Write the model cards."""
        self.cards = _run(self, "model_cards")
        print(f"model cards: {', '.join(self.cards['cards'])}")


def _run(flow: Any, stage: str) -> dict[str, Any]:
    """The summary of one stage."""
    from artifacts_schema.pretraining import PretrainingConfig
    from steps.context import TerminalProgress
    from steps.pretraining.stages import Pretraining

    config = PretrainingConfig.model_validate(flow.config.to_dict())
    return Pretraining(config, TerminalProgress()).run(stage)


if __name__ == "__main__":
    PretrainFlow()
