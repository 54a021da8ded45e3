"""Tells what a run takes, stage by stage, before any data are touched: steps, pictures, memory, time, cost, storage, traffic.

    snapfusion plan --preset sd15 --hardware a100-80gb --price 2.5
    snapfusion plan --preset sd15_24gb --hardware rtx-4090-24gb
    snapfusion plan --preset sd15 --hardware h200-141gb --pictures 400000000     # LAION-400M
    snapfusion plan --preset sd15 --hardware mine --tflops 200 --share 0.2 --memory-gib 96
    snapfusion plan                                                              # the default, on this machine, measured for it

Without --hardware this machine is measured, which takes a minute. For others memory is counted from shapes, and time from
multiply-accumulates and a stated share of the maker's FLOP/s: within a factor of two, and `snapfusion rehearse` there tells
better. 1 where a training cannot fit; the message says which settings would. Exports and reports, minutes of a CPU, are left out.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence

from flows.commands.configuration import add_config_options, chosen
from flows.commands.parser import command_parser
from flows.commands.prepared import exit_code
from flows.planning import Plan, planned
from flows.text import table
from steps.files.errors import ConfigError
from steps.latency.estimates import format_seconds
from steps.latency.hardware import HERE, hardware_named

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_DAY_S = 24 * 3600.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("plan", __doc__)
    add_config_options(parser)
    parser.add_argument(
        "--hardware", default=HERE, help=f"of the table, or a name for what is stated; default: {HERE}"
    )
    parser.add_argument("--tflops", type=float, help="what it states, in the training's precision")
    parser.add_argument("--share", type=float, default=0.15, help="of --tflops that is used; default: 0.15")
    parser.add_argument("--memory-gib", type=float, help="of the accelerator")
    parser.add_argument("--pictures", type=int, help="to prepare, in place of those of the configuration")
    parser.add_argument(
        "--price", type=float, help="of the machine an hour, in place of compute.price_per_hour"
    )
    parser.add_argument("--json", action="store_true", help="JSON: seconds and bytes")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan and print; 1 when a training cannot fit."""
    options = build_parser().parse_args(arguments)
    refused: list[str] = []

    def work() -> None:
        for name in ("tflops", "share", "memory_gib", "pictures"):
            value = getattr(options, name)
            if value is not None and not 0 < value < 1e13:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, found {value:g}")
        hardware = None
        if options.hardware != HERE:
            hardware = hardware_named(
                options.hardware, tflops=options.tflops, share=options.share, memory_gib=options.memory_gib
            )
        plan = planned(chosen(options), hardware, pictures=options.pictures, price=options.price)
        if options.json:
            print(json.dumps(dataclasses.asdict(plan), indent=2))
        else:
            print("\n".join(_lines(plan)))
        if plan.refused:
            refused.append(plan.refused)
            print(f"error: {plan.refused}", file=sys.stderr)

    return exit_code(work) or int(bool(refused))


def _lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.run} on {plan.hardware}"
    priced = any(item.cost is not None for item in plan.stages)
    head = (
        "stage",
        "steps",
        "pictures",
        "memory",
        "time",
        *(("cost",) if priced else ()),
        "storage",
        "traffic",
    )
    rows = []
    for item in plan.stages:
        cost = (f"{item.cost or 0.0:,.0f}",) if priced else ()
        memory = f"{item.memory_bytes / 2**30:.1f} GiB" if item.memory_bytes is not None else ""
        rows.append(
            (item.stage, _count(item.steps), _count(item.pictures), memory, _time(item.seconds), *cost,
             _size(item.storage_bytes), _size(item.traffic_bytes))
        )  # fmt: skip
    total = (f"{sum(item.cost or 0.0 for item in plan.stages):,.0f}",) if priced else ()
    sizes = (
        _size(sum(getattr(item, name) for item in plan.stages)) for name in ("storage_bytes", "traffic_bytes")
    )
    rows.append(("sum, one after the other", "", "", "", _time(plan.seconds), *total, *sizes))
    yield table([head, *rows])
    yield f"prepared data: {plan.bytes_per_picture / 2**20:.2f} MiB a picture"
    trained = max((item.pictures or 0 for item in plan.stages if item.steps), default=0)
    yield f"the longest training takes {trained:,} pictures: {trained / max(plan.pictures, 1):.3g} times each of the data"
    yield from plan.assumed


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _time(seconds: float) -> str:
    return format_seconds(seconds) if seconds < 10 * _DAY_S else f"{seconds / _DAY_S:,.0f} days"


def _size(size: float) -> str:
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}" if size else ""


if __name__ == "__main__":
    sys.exit(main())
