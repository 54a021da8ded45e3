"""Ablations of one finished run: what becomes of its student when one thing is done differently.

    python flows/ablation_flow.py run                                # every overlay of configs/ablations/, newest run
    python flows/ablation_flow.py run --arms c_vanilla --of_run 17   # any arm again
    python flows/ablation_flow.py --config config mine.toml run

Arms that have run before, of the same run by the same code, are taken from the store; an interrupted one goes on.
"""

# ruff: noqa: E402 - the environment must be prepared before metaflow is imported
from flows.environment import prepare

prepare()

from typing import Any

from metaflow import Config, FlowSpec, Parameter, card, current, package_sources, step

from flows import ablations
from flows.config import parse_ablation


@package_sources(
    ["../steps", "../artifacts_schema", "../flows"], suffixes=[".py", ".json", ".toml", ".sh", ".swift"]
)
class AblationFlow(FlowSpec):
    """One task an arm, one card for all."""

    config = Config(
        "config",
        default_value="",
        parser=parse_ablation,
        help="TOML file: length of an arm, pictures, overlays; see AblationConfig",
    )
    of_run = Parameter("of_run", default="", help="a finished run; none: the configuration's, or the newest")
    arms = Parameter(
        "arms", default="", help="overlays by name, with commas; none: the configuration's, or all"
    )

    @step
    def start(self) -> None:
        """Find the run, and check every overlay before anything is trained."""
        ablations.start(self)
        self.next(self.arm, foreach="overlays")

    @card(type="blank", id="progress")
    @step
    def arm(self) -> None:
        """Train, draw and measure one arm."""
        ablations.arm(self)
        self.next(self.report)

    @card(type="blank", id="report")
    @step
    def report(self, inputs: Any) -> None:
        """One card: table, curves, pictures."""
        ablations.card(self, inputs, current.card["report"])
        self.next(self.end)

    @step
    def end(self) -> None:
        """All is in the card."""


if __name__ == "__main__":
    AblationFlow()
