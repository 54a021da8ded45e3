"""Makes the embedded base model and its evaluators, and writes them to assets/.

    python flows/pretrain_flow.py run

Hours on two cores. Every stage checkpoints under .snapfusion/pretraining and is skipped when it is done, so a run that
was cut off is simply started again. Raising `iterations` in configs/pretrain.toml continues a training.
"""

# ruff: noqa: E402 - the environment must be prepared before metaflow is imported
from flows.environment import CODE_ROOT, PROJECT_ROOT, prepare

prepare()

from typing import Any

from metaflow import Config, FlowSpec, card, step

from flows.config import parse_pretraining
from flows.logs import configure_logging
from flows.runtime import card_progress


def run_pretraining(flow: Any, stage: str) -> dict[str, Any]:
    """One stage of the pretraining; returns its summary."""
    import torch

    from artifacts_schema.pretraining import PretrainingConfig
    from flows.environment import usable_cores
    from steps.stages.pretraining import Pretraining

    configure_logging()
    torch.set_num_threads(usable_cores())
    config = PretrainingConfig.model_validate(flow.config.to_dict())
    return Pretraining(config, card_progress()).run(stage)


class PretrainFlow(FlowSpec):
    """Tokenizer, OpenCLIP models, autoencoder, UNet, warm starts, model cards."""

    config = Config(
        "config",
        default=str(CODE_ROOT / "configs" / "pretrain.toml"),
        parser=parse_pretraining,
        help="TOML file",
    )

    @card(type="blank", id="progress")
    @step
    def start(self) -> None:
        """Learn the tokenizer."""
        self.tokenizer = run_pretraining(self, "tokenizer")
        self.next(self.openclip_signal)

    @card(type="blank", id="progress")
    @step
    def openclip_signal(self) -> None:
        """The evaluator that guides, whose text tower is the base's."""
        self.openclip_signal_summary = run_pretraining(self, "openclip_signal")
        self.next(self.autoencoder)

    @card(type="blank", id="progress")
    @step
    def autoencoder(self) -> None:
        """The AutoencoderKL."""
        self.autoencoder_summary = run_pretraining(self, "autoencoder")
        self.next(self.openclip_measure)

    @card(type="blank", id="progress")
    @step
    def openclip_measure(self) -> None:
        """The evaluator that only measures."""
        self.openclip_measure_summary = run_pretraining(self, "openclip_measure")
        self.next(self.unet)

    @card(type="blank", id="progress")
    @step
    def unet(self) -> None:
        """The eps-prediction UNet."""
        self.unet_summary = run_pretraining(self, "unet")
        self.next(self.velocity_warm_start)

    @card(type="blank", id="progress")
    @step
    def velocity_warm_start(self) -> None:
        """velocity_finetuning, longer than a default run can."""
        self.velocity_summary = run_pretraining(self, "velocity_warm_start")
        self.next(self.robust_warm_start)

    @card(type="blank", id="progress")
    @step
    def robust_warm_start(self) -> None:
        """robust_training, longer than a default run can."""
        self.robust_summary = run_pretraining(self, "robust_warm_start")
        self.next(self.model_cards)

    @step
    def model_cards(self) -> None:
        """Curves, pictures and numbers beside the weights."""
        self.cards = run_pretraining(self, "model_cards")
        self.next(self.end)

    @step
    def end(self) -> None:
        """Say where everything is."""
        print(f"assets written to {PROJECT_ROOT / self.config.output}")


if __name__ == "__main__":
    PretrainFlow()
