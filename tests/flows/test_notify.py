"""The webhook: what it is told, and that nothing it does or does not do harms a run."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.champion import ChampionEvent
from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.operating import NotifyConfig
from artifacts_schema.promotion import GateCheck, PromotionDecision
from flows.notify import VARIABLE, notify, notify_decision, notify_rollback, run_failed


class Webhook:
    """A server on this machine: answers with `statuses` in turn, the last one for good, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.statuses = [200]
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append(self.path)
                outer.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = outer.statuses.pop(0) if len(outer.statuses) > 1 else outer.statuses[0]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nobody looks."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.delenv(VARIABLE, raising=False)
    found = Webhook()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def config(webhook: Webhook, **changes: Any) -> NotifyConfig:
    return NotifyConfig(webhook=webhook.address, timeout_s=1.0, **changes)


KEPT = PromotionDecision(
    run="2",
    champion="1",
    outcome="kept",
    checks=(GateCheck(name="CLIP score", passed=False, wanted="not worse", found="-0.2 [-0.3, -0.1]"),),
)


def test_a_decision_is_told_with_its_conditions(webhook: Webhook) -> None:
    assert notify_decision(config(webhook), KEPT, name="nightly")
    (told,) = webhook.told
    assert told.pop("at").endswith("+00:00")
    assert told == {
        "event": "kept",
        "run": "2",
        "text": "kept: run 1 stays champion, because of CLIP score: -0.2 [-0.3, -0.1]",
        "champion": "1",
        "checks": [KEPT.checks[0].model_dump()],
        "name": "nightly",
    }


def test_promotions_and_rollbacks_name_the_new_champion(webhook: Webhook) -> None:
    notify_decision(config(webhook), KEPT.model_copy(update={"outcome": "promoted"}))
    event = ChampionEvent(id="a", event="rolled_back", run="1", replaced="2", at="now", reason="hands")
    notify_rollback(config(webhook), event)
    assert [(told["event"], told["champion"]) for told in webhook.told] == [
        ("promoted", "2"),
        ("rolled_back", "1"),
    ]


def test_events_that_nobody_wants_are_not_told(webhook: Webhook) -> None:
    assert not notify_decision(config(webhook, events=("failed",)), KEPT)
    assert not notify_decision(NotifyConfig(), KEPT)
    assert webhook.told == []


def test_a_secret_address_comes_from_the_environment(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, webhook.address.replace("/hook", "/secret"))
    assert notify(NotifyConfig(webhook="http://127.0.0.1:9/"), "failed", "1", "x")
    assert webhook.paths == ["/secret"]


def test_a_server_in_trouble_is_asked_again(webhook: Webhook) -> None:
    webhook.statuses = [503, 200]
    assert notify(config(webhook), "failed", "1", "x")
    assert len(webhook.told) == 2


@pytest.mark.parametrize(("status", "attempts", "asked"), [(404, 3, 1), (500, 2, 2), (302, 3, 1)])
def test_a_refusal_is_said_and_left(
    webhook: Webhook, capsys: pytest.CaptureFixture[str], status: int, attempts: int, asked: int
) -> None:
    webhook.statuses = [status]
    assert not notify(config(webhook, attempts=attempts), "failed", "1", "x")
    assert len(webhook.told) == asked
    assert capsys.readouterr().err == (
        f"webhook at 127.0.0.1: it answered {status}; the run goes on without\n"
    )


def test_a_webhook_that_does_not_answer_is_said_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/secret-path"
        assert not notify(NotifyConfig(webhook=address, timeout_s=0.05, attempts=1), "failed", "1", "x")
    said = capsys.readouterr().err
    assert "no answer (ReadTimeoutError)" in said and "secret-path" not in said
    assert not notify(NotifyConfig(webhook=address, timeout_s=0.05, attempts=1), "failed", "1", "x")
    assert "no answer (NewConnectionError)" in capsys.readouterr().err


def _run(webhook: Webhook, *lines: str) -> Any:
    """What Metaflow's Client gives of a run that failed in its second step."""

    class Run(list[Any]):
        id, pathspec, parent = "7", "SnapFusionFlow/7", SimpleNamespace(id="SnapFusionFlow")

        def __getitem__(self, name: Any) -> Any:
            data = parse_config({"notify": {"webhook": webhook.address}}).model_dump(mode="json")
            return (
                SimpleNamespace(task={"config": SimpleNamespace(data=data)})
                if name == "_parameters"
                else None
            )

    class Step(list[Any]):
        id = "student_8"

    failing = SimpleNamespace(successful=False, stderr="\n".join(lines))
    return Run([Step([failing]), Step([SimpleNamespace(successful=True)])])


def test_a_failed_run_names_step_and_reason(webhook: Webhook) -> None:
    run_failed(_run(webhook, "Traceback", "NonFiniteLossError: loss is nan", "", "Task failed."))
    (told,) = webhook.told
    assert (told["event"], told["run"], told["step"]) == ("failed", "7", "student_8")
    assert told["text"] == "SnapFusionFlow/7 failed in student_8: NonFiniteLossError: loss is nan"


@pytest.mark.parametrize("address", ["ftp://a", "https://me:word@host/", "host/path"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(InvalidConfig, match="webhook must be http"):
        parse_config({"notify": {"webhook": address}})
