"""Makes an earlier champion the champion again, or shows who was champion when.

    snapfusion rollback                        # to the one before
    snapfusion rollback 1720000000000000
    snapfusion rollback --history

The history is only ever appended to.
"""

import argparse
import sys
from collections.abc import Sequence

from artifacts_schema.config import parse_config
from flows.commands.prepared import exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.notify import notify_rollback
from flows.promotion import move_tag, user
from steps.cache.leases import in_use
from steps.registry.champion import champion_history, rollback, usable_report
from steps.store import Store, open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.rollback", __doc__)
    parser.add_argument("run", nargs="?", help="run id of an earlier champion; default: the one before")
    parser.add_argument("--reason", default="", help="goes into the history")
    parser.add_argument("--history", action="store_true", help="show every change of the champion and end")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, roll back, say."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        store = open_store(store_config(arguments), WORK_ROOT)
        if arguments.history:
            print("\n".join(_history(store)))
            return
        with in_use(store, "rollback"):
            event = rollback(store, arguments.run, by=user(), reason=arguments.reason)
            config = parse_config(usable_report(store, event.run).config)
        print(f"rolled back: run {event.run} is the champion again, in the place of run {event.replaced}")
        print(move_tag(store))
        notify_rollback(config.notify, event)

    return exit_code(work)


def _history(store: Store) -> list[str]:
    events = champion_history(store).events
    rows = [
        f"{event.at}  {event.event:12s} {event.run} in the place of {event.replaced or 'none'}"
        f"{f', by {event.by}' if event.by else ''}{f': {event.reason}' if event.reason else ''}"
        for event in events
    ]
    return rows or ["no run was promoted yet"]


if __name__ == "__main__":
    sys.exit(main())
