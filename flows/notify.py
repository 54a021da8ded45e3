"""Tells a webhook how a run ended. Nothing here ever fails a run: a webhook that does not answer is said and left.

The body, a JSON object, is described in docs/operate.md.
"""

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from artifacts_schema.champion import ChampionEvent
from artifacts_schema.operating import Event, NotifyConfig
from artifacts_schema.promotion import PromotionDecision

VARIABLE = "SNAPFUSION_WEBHOOK"
"""Its address may be a secret, which the configuration, a part of every report, is no place for."""
_LONGEST = 500
_NO_REASON = ("", "Task failed")  # what Metaflow adds at the end


def notify(config: NotifyConfig, event: Event, run: str, text: str, **more: Any) -> bool:
    """Send one event, if it is wanted; True when the webhook has taken it. Never raises for what the webhook does."""
    address = os.environ.get(VARIABLE) or config.webhook
    if not address or event not in config.events:
        return False
    body = {
        "event": event,
        "run": run,
        "text": text[:_LONGEST],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    problem = _post(address, body, config)
    if problem:
        # The path of such an address often is the secret.
        print(f"webhook at {urlsplit(address).hostname}: {problem}; the run goes on without", file=sys.stderr)
    return not problem


def notify_decision(config: NotifyConfig, decision: PromotionDecision, **more: Any) -> bool:
    """Send what the gate decided."""
    return notify(
        config,
        decision.outcome,
        decision.run,
        decision.summary,
        champion=decision.run if decision.outcome == "promoted" else decision.champion,
        checks=[check.model_dump(mode="json") for check in decision.checks],
        **more,
    )


def notify_rollback(config: NotifyConfig, event: ChampionEvent) -> bool:
    """Send that an earlier champion is back."""
    text = f"rolled back: run {event.run} is the champion again, in the place of run {event.replaced}"
    return notify(config, "rolled_back", event.run, text, champion=event.run, reason=event.reason)


def run_failed(run: Any = None) -> None:
    """Metaflow's exit hook of a run that has failed; `run` is None where the Client cannot find it."""
    from artifacts_schema.config import parse_config

    if run is None:
        notify(NotifyConfig(), "failed", "unknown", "a run failed; Metaflow's Client does not know it")
        return
    notified = parse_config(run["_parameters"].task["config"].data).notify
    where, why = _failure(run)
    notify(
        notified, "failed", run.id, f"{run.pathspec} failed{where}{why}", flow=run.parent.id, step=where[4:]
    )


def _failure(run: Any) -> tuple[str, str]:
    """The first step with a task that did not succeed, and the last line that the task has said of it."""
    for step in reversed(list(run)):
        for task in step:
            if not task.successful:
                lines = [line for line in str(task.stderr).splitlines() if line.strip(" .") not in _NO_REASON]
                return f" in {step.id}", f": {lines[-1].strip()}" if lines else ""
    return "", ""


def _post(address: str, body: Mapping[str, Any], config: NotifyConfig) -> str:
    """What went wrong, in words; "" when the webhook has taken it."""
    import urllib3

    retries = urllib3.Retry(
        total=config.attempts - 1,
        redirect=False,
        backoff_factor=0.5,
        allowed_methods=None,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    try:
        with urllib3.PoolManager(retries=retries, timeout=config.timeout_s) as pool:
            # The answer's body is not read: one that never ends would hold the run.
            answer = pool.request("POST", address, json=body, preload_content=False)
            answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return f"no answer ({type(getattr(error, 'reason', None) or error).__name__})"
    return "" if 200 <= answer.status < 300 else f"it answered {answer.status}"
