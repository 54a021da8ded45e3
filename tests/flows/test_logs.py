"""Log lines for people and for collectors."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from flows import logs
from flows.logs import JsonLines, Readable, about
from steps.files import progress
from steps.files.progress import LogProgress


@pytest.fixture(autouse=True)
def stage() -> Iterator[None]:
    about(run="17", stage="student_8", label="", key="0f3a")
    yield
    about()


def line(formatter: logging.Formatter, message: str, **more: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("steps.training.loop")
    logger.addHandler(handler)
    logger.info(message, **more)  # type: ignore[arg-type]
    return stream.getvalue()


def test_a_readable_line_names_stage_and_key_once() -> None:
    assert line(Readable(), "iteration=4") == "steps.training.loop iteration=4 stage=student_8 key=0f3a\n"
    assert line(Readable(), "stage=x done") == "steps.training.loop stage=x done key=0f3a\n"


def test_a_line_for_collectors_is_one_json_object() -> None:
    found = json.loads(line(JsonLines(), 'a "caption"\nof two lines'))
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "logger": "steps.training.loop",
        "message": 'a "caption"\nof two lines',
        "run": "17",
        "stage": "student_8",
        "key": "0f3a",
    }


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        text = line(JsonLines(), "failed", exc_info=True)
    assert text.count("\n") == 1 and "ValueError: no" in json.loads(text)["traceback"]


def test_json_is_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    assert not logs.wants_json()
    monkeypatch.setenv(logs.VARIABLE, "json")
    assert logs.wants_json()


def test_progress_in_a_log_is_told_once_in_a_while_and_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = LogProgress()
    with caplog.at_level(logging.INFO):
        bar.start("training", 40)
        for done in range(1, 41):
            now[0] += 1.0
            bar.update(done, loss=0.5)
        bar.close()
    assert [message.split()[0] for message in caplog.messages] == [
        "progress=0", "progress=15", "progress=30", "progress=40",
    ]  # fmt: skip
    assert caplog.messages[-1] == "progress=40 total=40 loss=0.5 work=training"
