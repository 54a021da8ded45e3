"""Rehearses a run: every stage at its real size for minutes, then says what the real one will take.

    snapfusion rehearse --preset sd15_24gb
    snapfusion rehearse --config my.toml

A thousand pictures, ten iterations of every training; the same base, batches and precision. It runs the flow under a name,
a label, a store and an output folder of its own, all ending in "-rehearsal", which can be removed afterwards.
"""

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from artifacts_schema.rehearsal import rehearsal_of
from flows.commands.prepared import as_called, exit_code
from flows.config import ConfigRefused, parse
from flows.environment import CODE_ROOT, WORK_ROOT
from steps.comparison.references import report_of
from steps.files.errors import ConfigError
from steps.latency.rehearsed import format_told, tell
from steps.report.stored import record_of
from steps.store import open_store

_FLOW = CODE_ROOT / "flows" / "snapfusion_flow.py"
_PRESETS = CODE_ROOT / "configs"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="snapfusion rehearse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", help="a file of configs/, without .toml")
    which.add_argument("--config", type=Path, help="a TOML file of your own")
    return parser


def main() -> int:
    """Parse, rehearse, tell."""
    arguments = build_parser().parse_args()
    path = as_called(arguments.config) if arguments.config else None
    return exit_code(lambda: rehearse(real_config(arguments.preset, path)))


def real_config(preset: str | None, path: Path | None) -> SnapFusionConfig:
    """The configuration of the real run. Raises ConfigError for one that is not there or refused."""
    path = path or _PRESETS / f"{preset}.toml"
    if not path.is_file():
        known = sorted(found.stem for found in _PRESETS.glob("*.toml") if found.stem != "pretrain")
        near = difflib.get_close_matches(preset or "", known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"presets are {', '.join(known)}"
        raise ConfigError(f"there is no configuration {path}; {advice}")
    try:
        return parse_config(parse(path.read_text(encoding="utf-8")))
    except (ConfigRefused, InvalidConfig) as error:
        raise ConfigError(str(error)) from error


def rehearse(real: SnapFusionConfig) -> None:
    """Run the flow on the rehearsal of `real` and print what it tells. Raises ConfigError when the rehearsal fails."""
    short = rehearsal_of(real)
    folder = WORK_ROOT / ".snapfusion" / "rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    config, run_id = folder / f"{real.run.name}.json", folder / f"{real.run.name}.run-id"
    config.write_text(short.model_dump_json(indent=2), encoding="utf-8")
    command = [
        sys.executable,
        str(_FLOW),
        "--config",
        "config",
        str(config),
        "run",
        "--run-id-file",
        str(run_id),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        raise ConfigError(
            "the rehearsal did not end: what stopped it stands above, and would have stopped the real run; if it was memory, "
            "set training.gradient_checkpointing, a smaller batch_size with more accumulation, or on a GPU training.ema_on_host"
        )
    print(told(real, short, run_id.read_text(encoding="utf-8").strip()))


def told(real: SnapFusionConfig, short: SnapFusionConfig, run_id: str) -> str:
    """What the finished rehearsal says about the real run."""
    store = open_store(short.store, WORK_ROOT)
    report = report_of(store, run_id)
    plan = record_of(store, report, "start")
    names = [name for name in report.inputs if name.startswith("evaluation ")]
    evaluations = {name.partition(" ")[2]: record_of(store, report, name) for name in names}
    rows = tell(real, short, plan.estimates, report.stages, evaluations)
    table = format_told(rows, price_per_hour=real.compute.price_per_hour)
    unknown = (
        ""
        if real.data.limit
        else "\nstart is told for a thousand pictures: set data.limit to have it told for yours"
    )
    return (
        f"\nrehearsal of {real.run.name}: it fits; told from {len(rows)} stages, memory is the computer's own\n{table}{unknown}\n"
        f"remove {WORK_ROOT / short.store.root} and {WORK_ROOT / short.report.output} when you have read this"
    )


if __name__ == "__main__":
    sys.exit(main())
