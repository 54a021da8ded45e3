"""Latency and parameters of every block of Stable Diffusion 1.5's UNet at full size, and the paper's Figure 2 of them.

    python -m benchmarks.full_size_blocks --json benchmarks/results/full_size_blocks.json \\
        --picture docs/images/full_size_blocks.png --table assets/latency_tables/sd15_cpu.json

Random weights: no latency depends on their values. A guided step (batch 2) in float32 on this machine's CPU; needs 9 GiB.
`--macs` counts instead of measuring.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import vl_convert

from artifacts_schema.latency import LatencyTable
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.stage_configs import LatencyProfileConfig
from benchmarks.published import Metric, publish, result
from benchmarks.sd15_networks import meta_base, random_vae, random_weights
from flows.commands.latency_table import shareable
from steps.cache.provenance import measured_here
from steps.inputs.context import StageContext, configure_torch, quiet_libraries
from steps.report.charts import latency_shares
from steps.stages import latency_profile
from steps.store import LocalStore


def profile(options: argparse.Namespace, folder: Path) -> LatencyTable:
    """The table of the base, as the stage measures it."""
    base = meta_base(micro=options.micro)
    if options.macs:
        return latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    text = base.text_encoder.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.fill_(0.01)
        for positions in text.buffers():  # `to_empty` leaves whatever the memory held
            positions.copy_(torch.arange(positions.shape[-1]))
    unet = random_weights("base", micro=options.micro)
    base = replace(base, unet=unet, vae=random_vae(micro=options.micro), text_encoder=text)
    context = StageContext("latency_profile", LocalStore(folder / "store"), folder / "work", 0)
    return latency_profile.profile(
        base, LatencyProfileConfig(repeats=options.repeats, warmup=1, max_unexplained=1.0), context
    )


def contributed(table: LatencyTable) -> str:
    """The table as assets/latency_tables/ takes it."""
    made = measured_here(torch.get_num_threads())
    return f"{shareable(table.model_copy(update={'provenance': made})).to_json()}\n"


def metrics_of(table: LatencyTable) -> list[Metric]:
    """A row a block, in order of execution, and the whole."""
    shares, found = table.shares(), []
    for name, row in table.parts().items():
        share = shares[name]
        note = f"{row.parameters / 1e6:.2f} M parameters ({share['parameters']:.1%}), {share['time']:.1%} of the sum"
        found.append(
            Metric(
                f"full_size.block.{name}",
                row.latency.median,
                table.unit,
                row.latency.n,
                row.latency.p10,
                row.latency.p90,
                note,
            )
        )
    whole = [
        ("unet", table.whole),
        ("text_encoder", table.cost("text_encoder")),
        ("decoder", table.cost("decoder")),
    ]
    found += [Metric(f"full_size.whole.{name}", value, table.unit, 1, value, value) for name, value in whole]
    value = table.explained
    return [
        *found,
        Metric("full_size.table_explained", value, "", 1, value, value, "sum of the parts over the whole"),
    ]


def main() -> int:
    """Parse, measure, draw, publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--macs", action="store_true", help="count multiply-accumulates, measure nothing")
    parser.add_argument("--micro", action="store_true", help="a tiny model: tries this program, no result")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--table", type=Path, help="for configurations that decide by it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads))
    with tempfile.TemporaryDirectory() as place:
        table = profile(options, Path(place))
    if options.picture is not None:
        options.picture.write_bytes(vl_convert.vegalite_to_png(json.dumps(latency_shares(table)), scale=1.5))
    if options.table is not None:
        options.table.write_text(contributed(table), encoding="utf-8")
    publish(result(metrics_of(table), module="benchmarks.full_size_blocks", seed=0), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
