"""The comparison in the terminal, and one sentence for what cannot be compared."""

from pathlib import Path

import pytest

from flows import runs
from flows.commands import compare
from steps.store import LocalStore
from tests.steps.comparison.made import made_run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """Two runs; Metaflow knows that 7 is one of another flow, and nothing else."""
    store = LocalStore(tmp_path)
    for run, clip in (("1", 0.0), ("2", 0.1)):
        made_run(store, run, clip=clip)
    monkeypatch.setattr(runs, "_tagged", lambda tag: {"good": ["2"]}.get(tag, []))
    monkeypatch.setattr(runs, "_explain", lambda run: "run 7 is one of PretrainFlow" if run == "7" else None)
    return store


def called(store: LocalStore, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["compare", "--store", str(store.folder), *arguments])
    return compare.main()


def test_verdict_and_metrics_are_printed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(store, monkeypatch, "run-1", "good") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("run-2 is better than run-1")
    assert "kernel distance" in printed and "* best" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["1"], "2 to 6 different runs, found 1"),
        (["1", "rum-2"], "did you mean 'run-2'?"),
        (["1", "7"], "run 7 is one of PretrainFlow"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:  # fmt: skip
    assert called(store, monkeypatch, *arguments) == 1
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and words in found.err and "Traceback" not in found.err
    assert not found.out
