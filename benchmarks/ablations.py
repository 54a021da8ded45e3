"""Publishes the ablations of a finished run, which `python flows/ablation_flow.py run` has left in its store.

python -m benchmarks.ablations --run 17 --json benchmarks/results/ablations.json
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.ablation import AblationRecord
from artifacts_schema.base import Interval
from benchmarks.published import ROOT, Metric, publish, result
from flows.runs import named_report
from steps.ablation.page import against, differences
from steps.ablation.prepare import of_run
from steps.files.errors import SnapFusionError
from steps.store import LocalStore


def metrics(store: LocalStore, records: Sequence[AblationRecord]) -> list[Metric]:
    """Every arm's numbers, and its paired differences."""
    apart, rows = differences(store, records), []
    for record in records:
        changes = (
            ", ".join(f"{name} = {value}" for name, value in record.changes.items()) or "nothing differs"
        )
        for place, point in record.points.items():
            prefix = f"ablation.{record.name}.{place.replace(' ', '_')}"
            rows += [
                _metric(f"{prefix}.kernel_distance", point.kernel_distance, changes),
                _metric(f"{prefix}.clip", point.clip_score, changes),
                _metric(f"{prefix}.retrieval_top1", point.retrieval_top1, changes),
            ]
            for name, value in apart.get((record.name, place), {}).items():
                note = f"paired, minus {against(record)}'s"
                rows.append(_metric(f"{prefix}.{name}_difference", value, note))
    return rows


def _metric(name: str, value: Interval, note: str) -> Metric:
    return Metric(name, value.value, value.unit, value.n, value.low, value.high, note)


def main() -> int:
    """Read, publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=ROOT / ".snapfusion/store")
    parser.add_argument("--run", help="run id; none: the newest")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    store = LocalStore(options.store)
    try:
        report = named_report(store, options.run)
        run_id = Path(report.folder).name
        records = of_run(store, run_id)
        if not records:
            raise SystemExit(
                f"run {run_id} has no ablations; make them: python flows/ablation_flow.py run --of_run {run_id}"
            )
        rows = metrics(store, records)
    except SnapFusionError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    publish(result(rows, module="benchmarks.ablations", seed=report.seed), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
