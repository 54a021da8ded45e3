"""Holds a finished run against the champion, and makes it the champion if it passes the gate.

    snapfusion promote 1720000000000000
    snapfusion promote 42 --store s3://bucket/project
    snapfusion promote 42 --force "the test pictures were looked at"     # whatever the gate says

The conditions are those of the run's own section [promotion], or of another file's (--config). Exit status: 0 when the run
became champion, 1 otherwise.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.config import load_config_file, parse_config
from artifacts_schema.promotion import PromotionDecision
from flows.commands.prepared import as_called, exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.notify import notify_decision
from flows.promotion import consider, lines, move_tag, user
from steps.cache.leases import in_use
from steps.comparison.references import resolve_runs, run_id_of
from steps.registry.champion import current_champion, promote
from steps.store import Store, open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.promote", __doc__)
    parser.add_argument("run", help="run id, name of a run, or latest")
    parser.add_argument("--config", type=Path, help="a TOML file whose [promotion] and [notify] count")
    parser.add_argument(
        "--force", metavar="REASON", help="without the gate; the reason goes into the history"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, decide, say."""
    arguments = build_parser().parse_args(words)
    outcomes: list[PromotionDecision] = []

    def work() -> None:
        store = open_store(store_config(arguments), WORK_ROOT)
        (report,) = resolve_runs(store, [arguments.run])
        run, named = run_id_of(report), arguments.config
        config = load_config_file(as_called(named)) if named else parse_config(report.config)
        forced = arguments.force
        decision = _forced(store, run, forced) if forced else consider(store, config.promotion, run)
        outcomes.append(decision)
        print("\n".join(lines(decision)))
        if decision.outcome == "promoted":
            print(move_tag(store))
        notify_decision(config.notify, decision, name=config.run.name)

    status = exit_code(work)
    return status or int(outcomes[0].outcome != "promoted")


def _forced(store: Store, run: str, reason: str) -> PromotionDecision:
    with in_use(store, f"promotion of run {run}"):
        before = current_champion(store)
        promote(store, run, over=before, by=user(), reason=f"forced: {reason}")
    return PromotionDecision(run=run, champion=before, outcome="promoted", note=f"forced: {reason}")


if __name__ == "__main__":
    sys.exit(main())
