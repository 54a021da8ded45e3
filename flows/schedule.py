"""What surrounds a run that nobody starts by hand: @schedule and @trigger of deployments, @exit_hook for failures.

All from the configuration, in one place. A local run ignores the schedule, and has the hook where a webhook is named.
docs/operate.md
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metaflow import FlowMutator
from metaflow.exception import MetaflowException

from artifacts_schema.config import SnapFusionConfig, parse_config
from flows.notify import VARIABLE

_DEPLOYS = ("argo-workflows", "step-functions")
FAILED_HOOK = "flows.notify.run_failed"


class ScheduleRefused(MetaflowException):  # type: ignore[misc]
    """Shown by Metaflow without a traceback."""

    headline = "Schedule refused"


class Scheduled(FlowMutator):  # type: ignore[misc]
    """Attaches @schedule, @trigger and @exit_hook as `[schedule]` and `[notify]` say, and a card to a gated end."""

    def pre_mutate(self, mutable_flow: Any) -> None:
        """See Metaflow's FlowMutator. Raises ScheduleRefused."""
        config = parse_config(dict(mutable_flow.configs)["config"].to_dict())
        arguments = sys.argv[1:]
        engine = deployed_with(arguments)
        if engine is not None:
            if problems := problems_of(config, engine):
                raise ScheduleRefused("nothing was deployed:\n  " + "\n  ".join(problems))
            for line in notices(config, engine, os.environ):
                print(f"note: {line}", file=sys.stderr)
        for name, settings in decorators(config, os.environ, engine).items():
            mutable_flow.add_decorator(name, deco_kwargs=settings)
        if config.promotion.enabled:  # no card where it has nothing to say
            end = dict(mutable_flow.steps)["end"]
            end.add_decorator("card", deco_kwargs={"type": "stage", "id": "promotion"}, duplicates=end.IGNORE)


def deployed_with(arguments: Sequence[str]) -> str | None:
    """The engine that this command compiles the flow for; None for a run."""
    return next((name for name in _DEPLOYS if name in arguments and "create" in arguments), None)


def decorators(
    config: SnapFusionConfig, environment: Mapping[str, str], engine: str | None
) -> dict[str, dict[str, Any]]:
    """Metaflow's decorators of the flow by name, with their arguments."""
    schedule = config.schedule
    found: dict[str, dict[str, Any]] = {}
    if schedule.cron is not None:
        zone = {"timezone": schedule.timezone} if schedule.timezone else {}
        found["schedule"] = {"cron": schedule.cron, **zone}
    if schedule.event is not None:
        found["trigger"] = {"event": schedule.event}
    wanted = bool(config.notify.webhook or environment.get(VARIABLE)) and "failed" in config.notify.events
    if wanted and engine != "step-functions":  # which refuse it
        found["exit_hook"] = {"on_error": [FAILED_HOOK]}
    return found


def problems_of(config: SnapFusionConfig, engine: str) -> list[str]:
    """Why this schedule could not work there."""
    schedule, found = config.schedule, []
    if schedule.cron is None and schedule.event is None:
        return []
    fields = len((schedule.cron or "").split())
    if schedule.cron is not None and fields != {"argo-workflows": 5, "step-functions": 6}[engine]:
        found.append(
            f"schedule.cron has {fields} fields: expected "
            + (
                "five, as '0 3 * * 1', for Argo Workflows"
                if engine == "argo-workflows"
                else "six, as '0 3 ? * MON *', for Step Functions"
            )
        )
    if engine == "step-functions" and schedule.event is not None:
        found.append("schedule.event needs Argo Events; Step Functions know schedule.cron only")
    if engine == "step-functions" and schedule.timezone is not None:
        found.append("schedule.timezone is for Argo Workflows; Step Functions count in UTC")
    if measures(config) and config.architecture_evolution.decide_by == "table":
        found.append(
            "latency_profile would measure on whatever node it gets, and another node's table means another evolution: "
            "import a table (latency_profile.table), or set latency_profile.backend = 'macs' or "
            "architecture_evolution.decide_by = 'macs'"
        )
    return found


def notices(config: SnapFusionConfig, engine: str, environment: Mapping[str, str]) -> list[str]:
    """What a person who deploys should know."""
    found = []
    scheduled = config.schedule.cron is not None or config.schedule.event is not None
    if scheduled and measures(config):
        found.append(
            "the latency table is measured on whatever node a run gets: the gate's latency changes with it "
            "(latency_profile.table imports one)"
        )
    if scheduled and not config.promotion.enabled:
        found.append("promotion.enabled is false: scheduled runs leave the champion as it is")
    if engine == "step-functions" and config.notify.webhook:
        found.append("Step Functions have no exit hooks: the webhook is told of promotions, not of failures")
    if config.notify.webhook is None and environment.get(VARIABLE):
        found.append(
            f"{VARIABLE} is set here; give it to the tasks as a secret, too (resources.default.secrets)"
        )
    return found


def measures(config: SnapFusionConfig) -> bool:
    """True where the latency table comes from the machine that the run happens to get."""
    return config.latency_profile.table is None and config.latency_profile.backend != "macs"
