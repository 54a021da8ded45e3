"""What [schedule] and [notify] add to a deployed flow, and what they refuse."""

from typing import Any

import pytest

from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from flows import schedule
from flows.notify import VARIABLE
from flows.schedule import Scheduled, ScheduleRefused, decorators, deployed_with, notices, problems_of

WEEKLY = {"cron": "0 3 * * 1"}
BY_MACS = {"latency_profile": {"backend": "macs"}}
CREATE = ["--production", "argo-workflows", "create", "--only-json"]


def config(**sections: Any) -> SnapFusionConfig:
    return parse_config(sections)


def test_an_ordinary_run_gets_nothing() -> None:
    assert decorators(config(), {}, None) == {}
    assert deployed_with(["run", "--tag", "create"]) is None
    assert deployed_with(CREATE) == "argo-workflows"


def test_everything_comes_from_the_configuration() -> None:
    found = config(
        schedule={**WEEKLY, "timezone": "Europe/Berlin", "event": "shards"}, notify={"webhook": "https://a/b"}
    )
    assert decorators(found, {}, "argo-workflows") == {
        "schedule": {"cron": "0 3 * * 1", "timezone": "Europe/Berlin"},
        "trigger": {"event": "shards"},
        "exit_hook": {"on_error": ["flows.notify.run_failed"]},
    }


def test_the_hook_is_there_where_failures_are_told() -> None:
    assert "exit_hook" in decorators(config(), {VARIABLE: "https://a"}, None)
    assert decorators(config(notify={"webhook": "https://a", "events": ["kept"]}), {}, None) == {}
    assert decorators(config(notify={"webhook": "https://a"}), {}, "step-functions") == {}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"timezone": "Europe/Berlin"}, "a schedule without cron never starts"),
        ({"cron": "weekly"}, "cron must be five fields"),
        ({**WEEKLY, "timezone": "Europe/Atlantis"}, "'Europe/Atlantis' is unknown"),
        ({**WEEKLY, "timezone": "../etc"}, "timezone is unknown here"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(section: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config(schedule=section)


@pytest.mark.parametrize(
    ("engine", "section", "words"),
    [
        ("argo-workflows", {"cron": "0 3 ? * MON *"}, "has 6 fields: expected five"),
        ("step-functions", WEEKLY, "has 5 fields: expected six"),
        ("step-functions", {"event": "shards"}, "needs Argo Events"),
        ("step-functions", {"cron": "0 3 ? * MON *", "timezone": "Europe/Berlin"}, "count in UTC"),
    ],
)
def test_an_engine_gets_only_what_it_can_do(engine: str, section: dict[str, str], words: str) -> None:
    (problem,) = problems_of(config(schedule=section, **BY_MACS), engine)
    assert words in problem


def test_a_table_that_changes_with_the_node_decides_no_scheduled_evolution() -> None:
    measured = {"schedule": WEEKLY, "architecture_evolution": {"decide_by": "table"}}
    (problem,) = problems_of(config(**measured), "argo-workflows")
    assert "another node's table means another evolution" in problem
    assert problems_of(config(**measured, **BY_MACS), "argo-workflows") == []
    assert (
        problems_of(config(**measured, latency_profile={"table": "mac/table.json"}), "argo-workflows") == []
    )
    assert problems_of(config(architecture_evolution={"decide_by": "table"}), "argo-workflows") == []
    by_macs = config(schedule=WEEKLY, architecture_evolution={"decide_by": "macs"})
    assert problems_of(by_macs, "argo-workflows") == []
    assert any("changes with it" in line for line in notices(by_macs, "argo-workflows", {}))


def test_what_a_schedule_leaves_undone_is_said() -> None:
    said = " ".join(notices(config(schedule=WEEKLY, notify={"webhook": "https://a"}), "step-functions", {}))
    assert "leave the champion as it is" in said and "not of failures" in said
    assert "as a secret" in " ".join(notices(config(), "argo-workflows", {VARIABLE: "https://a"}))


class Flow:
    """What Metaflow gives a FlowMutator."""

    def __init__(self, found: SnapFusionConfig) -> None:
        self.added: dict[str, Any] = {}
        self.cards: list[Any] = []
        self.configs = [("config", self)]
        self.steps = [("start", None), ("end", self)]
        self.to_dict = lambda: found.model_dump(mode="json")

    IGNORE = "ignore"

    def add_decorator(self, name: str, deco_kwargs: dict[str, Any], duplicates: str = "") -> None:
        (self.cards.append(deco_kwargs) if name == "card" else self.added.update({name: deco_kwargs}))  # type: ignore[func-returns-value]


def test_the_flow_is_decorated_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule.sys, "argv", ["flow.py", *CREATE])
    promoting = {
        "promotion": {"enabled": True},
        "evaluation": {"split": "validation"},
        "architecture_evolution": {"decide_by": "table"},
    }
    flow = Flow(config(schedule=WEEKLY, **BY_MACS, **promoting))
    Scheduled.pre_mutate(None, flow)  # type: ignore[arg-type]
    assert flow.added == {"schedule": {"cron": "0 3 * * 1"}}
    assert flow.cards == [{"type": "stage", "id": "promotion"}]
    with pytest.raises(ScheduleRefused, match="nothing was deployed"):
        Scheduled.pre_mutate(None, Flow(config(schedule=WEEKLY, **promoting)))  # type: ignore[arg-type]


def test_promotion_needs_something_to_compare() -> None:
    with pytest.raises(InvalidConfig, match=r"nothing is drawn there: set evaluation\.split"):
        config(promotion={"enabled": True}, evaluation={"guidance_scales": [3.0]})
    with pytest.raises(InvalidConfig, match="needs student_8_small_decoder"):
        config(promotion={"enabled": True}, evaluation={"variants": ["base_50"], "split": "validation"})
    assert config(promotion={"enabled": True}, evaluation={"guidance_scales": [2.0, 3.0]}).promotion.enabled
