"""One run: its numbers with intervals, its stages with time and cache, and where everything is.

snapfusion show                          # the newest run
snapfusion show 1720000000000000 --json  # the whole report
snapfusion show 42 --store s3://bucket/project
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from artifacts_schema.run_configs import StoreConfig
from flows.commands.prepared import exit_code
from flows.commands.store_options import store_config, store_options, store_parser
from flows.run import Run, store_at
from flows.text import printable, table
from steps.registry.champion import current_champion
from steps.report.origins import cache_word, code_words


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.show", __doc__)
    parser.add_argument(
        "run", nargs="?", default="latest", help="run id, name, latest, previous or champion; default: latest"
    )
    parser.add_argument("--json", action="store_true", help="JSON: the line of `runs`, and the report")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, look, print."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        config = store_config(options)
        store = store_at(config)
        run, promoted = Run.open(options.run, store=store), current_champion(store)
        if options.json:
            print(json.dumps(run.row(promoted) | {"report": json.loads(run.report.to_json())}, indent=2))
        else:
            print("\n".join(_page(run, promoted, config)))

    return exit_code(work)


def _page(run: Run, promoted: str | None, config: StoreConfig) -> Iterator[str]:
    report = run.report
    standing = ", champion" if run.id == promoted else ""
    yield printable(
        f"run {run.id}: {run.name}, preset {run.preset}, seed {report.seed}, {run.date}{standing}"
    )
    yield from (f"  ({printable(label)})" for label in report.labels)
    yield f"  code {code_words(report.code)}"
    yield ""
    rows = [("number", "value", "95 % interval", "n")]
    for name, value in report.headline.items():
        interval = report.quality.get(name)
        limits = (f"[{interval.low:.4g}, {interval.high:.4g}]", str(interval.n)) if interval else ("", "")
        rows.append((name, f"{value:.4g}", *limits))
    yield table(rows)
    yield ""
    stages = [(row.stage, cache_word(row), f"{row.wall_time_s:.1f} s", row.made_by) for row in report.stages]
    yield table([("stage", "cache", "time when it ran", "made by"), *stages])
    yield ""
    yield from _places(run, config)


def _places(run: Run, config: StoreConfig) -> Iterator[str]:
    where, folder = store_options(config), Path(run.report.folder)
    here = "" if folder.is_dir() else " (not on this machine)"
    yield f"store    {run.store.root}"
    yield f"outputs  {folder}{here}"
    yield f"fetch    snapfusion outputs{where} {run.id}"
    yield f"trace    snapfusion trace{where} {shlex.quote(str(folder / 'bundle'))}"
    yield f"card     python flows/snapfusion_flow.py card view {run.id}/report --id report"
    yield f'draw     snapfusion draw{where} --run {run.id} "a caption" --output picture.png'


if __name__ == "__main__":
    sys.exit(main())
