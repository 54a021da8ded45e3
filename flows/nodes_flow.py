"""Trains one stage over several nodes, for a run of the main flow that was stopped before it.

    python flows/nodes_flow.py --config config my.toml run --stage student_8 --nodes 2

Its inputs come from the cache, and its record goes there, under the key at which the main flow looks: resume the run
afterwards. docs/clusters.md
"""

# ruff: noqa: E402 - the environment must be prepared before metaflow is imported
from flows.environment import CODE_ROOT, prepare

prepare()

from typing import Any

from metaflow import Config, FlowSpec, Parameter, card, package_sources, step

from flows import nodes as several
from flows.config import parse
from flows.stage_card import register

register()


@several.OneStage()
@package_sources(
    ["../steps", "../artifacts_schema", "../flows", "../configs"],
    suffixes=[".py", ".json", ".toml", ".sh", ".swift"],
)
class NodesFlow(FlowSpec):
    """One stage, one task a node."""

    config = Config(
        "config",
        default=str(CODE_ROOT / "configs" / "openmoji.toml"),
        parser=parse,
        help="TOML file, that of the run",
    )
    stage = Parameter("stage", required=True, help="a stage that trains, such as student_8")
    nodes = Parameter("nodes", type=int, default=2, help="machines; each has compute.processes ranks")

    @card(type="stage", id="progress")
    @step
    def start(self) -> None:
        """Find the stage's inputs in the cache, before any node is asked for."""
        several.start(self)
        self.next(self.train, num_parallel=self.nodes)

    @card(type="stage", id="progress")
    @several.side_by_side
    @step
    def train(self) -> None:
        """The first node runs the stage, the others its ranks."""
        several.train(self)
        self.next(self.gather)

    @step
    def gather(self, _: Any) -> None:
        """Metaflow wants a join here; the record is in the cache."""
        self.next(self.end)

    @step
    def end(self) -> None:
        """Say what to do next."""
        several.end(self)


if __name__ == "__main__":
    NodesFlow()
