"""What this machine can run, how long it would take, and what is missing, each with the command that mends it.

    snapfusion doctor
    snapfusion doctor --price 2.5                       # of this machine an hour, in any currency
    snapfusion doctor --quick                           # without measuring: no times
    snapfusion doctor --config mine.toml --json         # with the store that this configuration names

1 when something is broken. A note breaks nothing. Times are rough: work of the stages one after the other, without preparing
data, start-up and conversion; `start` prints better ones, of the run's own base, before the first hour of a run.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from flows.commands.configuration import add_config_options, chosen
from flows.commands.parser import command_parser
from flows.commands.prepared import exit_code
from flows.costs import Measured, PresetCost, preset_costs
from flows.health import GIB, Finding, environment, findings
from flows.text import table
from steps.latency.estimates import format_seconds

_YEAR_S = 365.25 * 24 * 3600


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("doctor", __doc__)
    add_config_options(parser)
    parser.add_argument(
        "--quick", action="store_true", help="measure nothing: a second instead of half a minute"
    )
    parser.add_argument("--price", type=float, default=0.0, help="of this machine an hour: shows costs")
    parser.add_argument("--json", action="store_true", help="JSON: findings and presets")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, measure, print; 1 when something is broken."""
    options = build_parser().parse_args(arguments)
    found: list[Finding] = []

    def work() -> None:
        found.extend(findings(chosen(options), environment()))
        measured = None if options.quick else preset_costs()
        if options.json:
            print(json.dumps(_payload(found, measured), indent=2))
        else:
            print("\n".join((*_health(found), *(_presets(measured, options.price) if measured else ()))))

    return exit_code(work) or int(any(item.state == "broken" for item in found))


def _payload(found: Sequence[Finding], measured: Measured | None) -> dict[str, Any]:
    return {
        "findings": [dataclasses.asdict(item) for item in found],
        "measured": dataclasses.asdict(measured) if measured else None,
    }


def _health(found: Sequence[Finding]) -> Iterator[str]:
    width = max(len(item.what) for item in found)
    for item in found:
        yield f"{item.state:6}  {item.what:{width}}  {item.found}"
        if item.mend:
            yield f"{'':6}  {'':{width}}  -> {item.mend}"
    broken = [item.what for item in found if item.state == "broken"]
    yield f"\nbroken: {', '.join(broken) or 'nothing'}\n"


def _presets(measured: Measured, price: float) -> Iterator[str]:
    yield f"presets, roughly, on {measured.on}:"
    head = ("preset", "work", *(("cost",) if price else ()), "memory", "disk", "basis", "")
    yield table([head, *(_row(item, measured, price) for item in measured.presets)])
    if any(item.basis == "scaled" for item in measured.presets):
        yield (
            "scaled: as Stable Diffusion 1.5, by multiply-accumulates from the included model. A small model uses a machine "
            "badly: it will be faster, on a GPU by far"
        )


def _row(item: PresetCost, measured: Measured, price: float) -> tuple[str, ...]:
    cost = (f"{item.seconds / 3600 * price:.2f}",) if price else ()
    sizes = (f"{size / GIB:.1f} GiB" for size in (item.memory_bytes, item.disk_bytes))
    verdict = "can run"
    if item.missing:
        verdict = f"needs a base in {item.missing}"
    elif item.memory_bytes > measured.memory_bytes:
        verdict = "too little memory"
    work = format_seconds(item.seconds) if item.seconds < _YEAR_S else "over a year"
    return (item.preset, work, *cost, *sizes, item.basis, verdict)


if __name__ == "__main__":
    sys.exit(main())
