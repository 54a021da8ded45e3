"""What tells runs apart in Metaflow's own lists: tags, and artifacts small enough for its UI."""

import json
import logging
import pickle
from collections.abc import Mapping
from typing import Any

from metaflow import Run, current
from metaflow.exception import MetaflowException

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record
from artifacts_schema.config import InvalidConfig, SnapFusionConfig, load_config_file, parse_config
from artifacts_schema.report import RunReport
from flows.environment import CODE_ROOT
from steps.comparison.frame import headline_of
from steps.report.trace import flat

logger = logging.getLogger(__name__)
SMALL = 4096  # bytes, pickled: Metaflow's UI shows nothing larger
_MOST_CHANGES = 12  # tags on what differs from the preset
_LONGEST = 80
# What no preset says, or what has a tag of its own.
_NO_CHANGE = ("run.", "store.", "report.", "compute.", "base.path", "promotion.", "schedule.", "notify.")


def tags_of(
    config: SnapFusionConfig, report: RunReport | None = None, evolution: Record | None = None
) -> list[str]:
    """Tags of a run: name, preset, base, what differs from the preset, and once there is a report its numbers."""
    preset, changes = preset_of(config)
    # The UI's table shows the first three in the alphabet's order: the name, which says most, comes before all letters.
    found = [f"#{config.run.name}", f"name:{config.run.name}", f"base:{config.base.path}"]
    found += [f"preset:{preset}"] if preset else []
    found += [f"{_short(key)}:{_value(value)}" for key, value in list(changes.items())[:_MOST_CHANGES]]
    found += ["smoke"] if config.run.smoke else []
    if report is not None:
        found += _numbers(report)
    if isinstance(evolution, EvolutionRecord):  # where the stage was skipped there is none
        unit = evolution.latency_unit.lower()
        found.append(f"{unit}:{_value(float(f'{evolution.predicted_latency:.3g}'))}")
    return [tag[:_LONGEST] for tag in found]


def preset_of(config: SnapFusionConfig) -> tuple[str, dict[str, Any]]:
    """The preset that a configuration is nearest to, and what differs from it; "" where no presets are at hand."""
    own, best = dict(flat(config.model_dump(mode="json"))), ("", dict[str, Any]())
    for path in sorted((CODE_ROOT / "configs").glob("*.toml")):
        try:
            preset = dict(flat(load_config_file(path).model_dump(mode="json")))
        except InvalidConfig:  # of the pretraining
            continue
        keys = [key for key in own if own[key] != preset.get(key) and not key.startswith(_NO_CHANGE)]
        if not best[0] or len(keys) < len(best[1]):
            best = path.stem, {key: own[key] for key in keys}
    return best


def keep_tags(flow: Any) -> None:
    """Set the tags of a resumed run again: it lacks those that its cloned steps have set (Metaflow issue 1406)."""
    if current.origin_run_id:
        tag_run(parse_config(flow.config.to_dict()))


def tag_run(
    config: SnapFusionConfig, report: RunReport | None = None, evolution: Record | None = None
) -> None:
    """Tag the present run. A service that does not take a tag is no reason to fail."""
    try:
        run = Run(f"{current.flow_name}/{current.run_id}", _namespace_check=False)
        run.add_tags(tags_of(config, report, evolution))
    except MetaflowException as error:
        logger.warning("the run was not tagged: %s", error)


def small_artifacts(report: RunReport, config: SnapFusionConfig, verdict: str) -> dict[str, Any]:
    """`headline`, `config_changes` and `verdict`, each under 4,096 bytes pickled."""
    _, changes = preset_of(config)
    return {
        "headline": fitting(headline_of(report)),
        "config_changes": fitting(changes),
        "verdict": verdict[: SMALL // 4],  # a letter may take four bytes
    }


def fitting(found: Mapping[str, Any]) -> dict[str, Any]:
    """As many entries as fit, from the first; `more` says how many did not."""
    kept = dict(found)
    while len(pickle.dumps(kept)) >= SMALL:
        kept.pop("more", None)
        kept.popitem()
        kept["more"] = len(found) - len(kept)
    return kept


def _numbers(report: RunReport) -> list[str]:
    row = next((row for row in report.evaluations if row["variant"] == "student_8_small_decoder"), None)
    found = []
    if row is not None:
        point = row["point"]
        found += [
            f"distance:{point['kernel_distance']['value']:.4f}",
            f"clip:{point['clip_score']['value']:.4f}",
        ]
    return found


def _short(key: str) -> str:
    return key.replace(".training.", ".")


def _value(value: Any) -> str:
    """2e-4 rather than 0.0002; lists as JSON."""
    if isinstance(value, float) and value and not 1e-2 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
