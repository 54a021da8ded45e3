"""From a bundle back to the runs that made it, and to their data, code and configuration. Imports no torch.

A run's report names the identity of the manifest it ended with (`inputs["bundle"]`). The manifest cannot name the run:
two runs with the same result leave the same bundle.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from artifacts_schema.bundle import BundleManifest
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.plan import RunPlan
from artifacts_schema.readers import stored_identity
from artifacts_schema.report import RunReport
from steps.files.errors import StoreError
from steps.report.origins import cache_word, code_words, data_words
from steps.report.stored import record_of
from steps.store import Store


def made_of(manifest: BundleManifest, text: str) -> list[str]:
    """What a manifest says of itself, which needs no store: its identity, and what went into the bundle."""
    weights = [f"  weights {name}: {sha256}" for name, sha256 in manifest.weights.items()]
    records = [f"  record {name}: {identity}" for name, identity in manifest.made_of.items()]
    return [f"manifest {stored_identity(text)}", *weights, *records]


def runs_of(store: Store, text: str) -> dict[str, RunReport]:
    """Reports of the runs that ended with the manifest of this text, by run id.

    Raises StoreError when there is none.
    """
    identity, found = stored_identity(text), {}
    for key in store.list_documents("reports/"):
        report = store.get_document(key) or "{}"
        if json.loads(report).get("inputs", {}).get("bundle") == identity:
            found[key.removeprefix("reports/")] = RunReport.from_json(report)
    if not found:
        raise StoreError(
            f"no report in the store {store.root} names this bundle; name the --store of the run that made it"
        )
    return found


def describe(store: Store, run_id: str, report: RunReport) -> list[str]:
    """Code, base, data, configuration and stages of a run, for people."""
    origin = report.provenance
    made = f", finished {origin.created_at} on {origin.host}" if origin else ""
    lines = [f"run {run_id}: {report.name}, seed {report.seed}{made}", f"  code    {code_words(report.code)}"]
    if origin:
        lines.append("  with    " + ", ".join(f"{name} {text}" for name, text in origin.versions.items()))
    lines += _inputs(store, report)
    lines.append("  config, where it differs from this program's defaults:")
    lines += [f"    {text}" for text in config_differences(report.config)] or ["    nowhere"]
    lines.append("  stages:")
    for row in report.stages:
        lines.append(f"    {row.stage}: record {row.identity}")
        if row.key:
            lines.append(f"      version {row.version}, key {row.key}, cache {cache_word(row)}")
        if row.made_by:
            source = f", source {row.source}" if row.source else ""
            lines.append(f"      made by {row.made_by} with code {row.code or 'not known'}{source}")
    return lines


def _inputs(store: Store, report: RunReport) -> list[str]:
    try:
        plan: RunPlan = record_of(store, report, "start")
    except StoreError as error:
        return [f"  base and data: {error}"]
    base = f"  base    {report.config['base']['path']}: {plan.base_identity}"
    data = [f"  data    {data_words(plan)}; prepared: {plan.data.identity()}"]
    return [base, *data, *(f"    {file.sha256} {file.name}" for file in plan.raw_data.files)]


def config_differences(config: Mapping[str, Any]) -> list[str]:
    """Every value that is not this program's default, and the default."""
    default = dict(flat(SnapFusionConfig().model_dump(mode="json")))
    return [
        f"{name} = {json.dumps(value)} (default: {json.dumps(default.get(name))})"
        for name, value in flat(config)
        if name not in default or value != default[name]
    ]


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a configuration."""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
