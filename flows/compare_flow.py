"""Compare finished runs on one card.

    python flows/compare_flow.py run --runs 1720000000000000,latest
    python flows/compare_flow.py --config config configs/sd15.toml run --runs champion,nightly,lr:2e-4

The first run is what the others are held against. `snapfusion compare A B` prints the same in the terminal.
"""

# ruff: noqa: E402 - the environment must be prepared before metaflow is imported
from flows.environment import CODE_ROOT, prepare

prepare()


from metaflow import Config, FlowSpec, Parameter, card, current, package_sources, step
from metaflow.exception import MetaflowException

from flows.config import parse
from flows.runtime import read_config, store_of
from steps.cache.leases import in_use
from steps.files.errors import SnapFusionError

DEFAULT_CONFIG = str(CODE_ROOT / "configs" / "openmoji.toml")


class NotCompared(MetaflowException):
    """Shown by Metaflow without a traceback."""

    headline = "Runs not compared"


@package_sources(
    ["../steps", "../artifacts_schema", "../flows"], suffixes=[".py", ".json", ".toml", ".sh", ".swift"]
)
class CompareFlow(FlowSpec):
    """Runs side by side: verdict, reasons, metrics, pictures, architectures, curves, cost."""

    config = Config(
        "config", default=DEFAULT_CONFIG, parser=parse, help="names the store that the runs are in"
    )
    runs = Parameter(
        "runs", required=True, help="2 to 6 run ids, names or tags, with commas: champion,latest,nightly"
    )

    @card(type="blank", id="comparison")
    @step
    def start(self) -> None:
        """Compare, and fill the card."""
        from flows.cards import render
        from flows.runs import compared
        from steps.comparison.own import verdict_words
        from steps.comparison.page import comparison_page
        from steps.report.content import Heading

        store = store_of(read_config(self))
        try:
            with in_use(store, "compare"):  # nothing is collected meanwhile
                found = compared(store, str(self.runs).split(","))
                page = comparison_page(store, found)
        except SnapFusionError as error:
            raise NotCompared(str(error)) from None
        render(current.card["comparison"], [Heading(" and ".join(run.title for run in found.runs)), *page])
        self.verdict, self.compared = verdict_words(found), [run.id for run in found.runs]
        self.next(self.end)

    @step
    def end(self) -> None:
        """Say the verdict, and where the card is."""
        print(f"\n{self.verdict}\n")
        print(f"card     python flows/compare_flow.py card view {current.run_id}/start --id comparison")
        print(
            f"file     python flows/compare_flow.py card get {current.run_id}/start card.html --id comparison"
        )


if __name__ == "__main__":
    CompareFlow()
