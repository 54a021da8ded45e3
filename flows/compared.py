"""What `report` says of a run beside others, and what of it Metaflow's own lists can show."""

from collections.abc import Mapping, Sequence
from typing import Any

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.report import RunReport
from flows.runs import named_reports
from flows.tags import small_artifacts
from steps.comparison.references import run_id_of
from steps.files.errors import ConfigError, SnapFusionError
from steps.report.content import Block, Heading, Verdict
from steps.store import Store


def runs_to_compare(config: SnapFusionConfig, store: Store) -> list[str]:
    """Ids of the runs that `report.compare_to` means. Raises ConfigError for one that is not in the store."""
    if not config.report.compare_to:
        return []
    try:
        return [run_id_of(found) for found in named_reports(store, config.report.compare_to)]
    except SnapFusionError as error:
        raise ConfigError(f"report.compare_to: {error}") from error


def beside_others(
    config: SnapFusionConfig, store: Store, report: RunReport, records: Mapping[str, Any]
) -> tuple[list[Block], dict[str, Any]]:
    """The comparison for the card of a run that has just ended, and its small artifacts by name."""
    # Charts and statistics take a second to import, which a task that shows none should not pay.
    from steps.comparison.own import beside_others as compare
    from steps.comparison.runs import Run

    blocks, verdict = compare(store, Run(report, dict(records)), runs_to_compare(config, store))
    return blocks, small_artifacts(report, config, verdict)


def page_with(page: Sequence[Block], beside: Sequence[Block]) -> list[Block]:
    """A report's page with the verdicts under its first part, and what they rest on at its end."""
    parts = [place for place, block in enumerate(page) if isinstance(block, Heading) and not block.sub]
    second = parts[1] if len(parts) > 1 else len(page)
    verdicts = [block for block in beside if isinstance(block, Verdict)]
    evidence = [block for block in beside if not isinstance(block, Verdict)]
    return [*page[:second], *verdicts, *page[second:], *evidence]
