"""How a finished run becomes champion or does not: reports with real pictures' measurements, no flow."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from artifacts_schema.config import SHIPPED, SnapFusionConfig, parse_config
from artifacts_schema.references import FolderRef
from artifacts_schema.report import RunReport
from flows import promotion
from flows.promotion import conclude, consider, lines, move_tag, page
from steps.cache.notes import report_of_run
from steps.files.errors import PromotionError
from steps.registry.champion import current_champion, promote, rollback
from steps.store import LocalStore
from tests.steps.evaluation.test_compare import record

CONFIG = parse_config(
    {
        "promotion": {"enabled": True, "require_licence": False},
        "evaluation": {"split": "validation"},
    }
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / ".snapfusion" / "store", durable=False)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The events that the webhook would get; nobody asks Metaflow for a run."""
    found: list[Any] = []
    monkeypatch.setattr(
        promotion, "notify_decision", lambda _, decision, **__: found.append(decision.outcome)
    )
    monkeypatch.setattr(promotion, "move_tag", lambda _: "the tag moved")
    return found


def finish(
    store: LocalStore, run: str, clip: float, *, bundle: str | None = None, **protocol: Any
) -> RunReport:
    """What a run leaves whose student reaches this CLIP score."""
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0)) / 50
    evaluated = record(store, SHIPPED, noise + clip, split="validation", **protocol)
    manifest = store.put_bytes(f"bundle of {bundle or run}".encode())
    report = RunReport(
        stage="report",
        name=run,
        smoke=False,
        config=CONFIG.model_dump(mode="json"),
        inputs={f"evaluation {SHIPPED}": evaluated.identity(), "bundle": manifest.sha256},
        headline={
            "unet.predicted_latency_ratio": 2.5,
            "coreml.unet.size_mib": 3.0,
            "coreml.unet.psnr_exact_db": 70.0,
        },
        outputs=FolderRef(files={"bundle/manifest.json": manifest}),
        folder=f"/runs/{run}",
    )
    report_of_run(store, run, report, [evaluated])
    return report


def test_retraining_three_ways(
    store: LocalStore, told: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"first": 0.70, "unchanged": 0.70, "better": 0.75, "worse": 0.60}
    said = {}
    for run, clip in runs.items():
        finish(store, run, clip, bundle="first" if run == "unchanged" else None)
        decision = conclude(store, CONFIG, run)
        assert decision is not None
        said[run] = decision.summary
    assert told == ["promoted", "unchanged", "promoted", "kept"]
    assert current_champion(store) == "better"
    assert said["better"] == "promoted: run better is the champion, in the place of run first"
    assert said["unchanged"].startswith("unchanged: run unchanged made what champion run first is made of")
    assert "kept: run better stays champion, because of CLIP score: -0.15" in said["worse"]
    assert capsys.readouterr().out.count("the tag moved") == 2


def test_what_is_unchanged_is_not_compared(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would import torch, and read every picture's features."""
    for run in ("1", "2"):
        finish(store, run, 0.7, bundle="1")
    conclude(store, CONFIG, "1")
    monkeypatch.setattr("steps.report.against_champion.compare_with_champion", None)
    assert consider(store, CONFIG.promotion, "2").outcome == "unchanged"


def test_a_retried_end_changes_nothing(store: LocalStore) -> None:
    finish(store, "1", 0.7)
    assert [conclude(store, CONFIG, "1").outcome for _ in range(2)] == ["promoted", "kept"]  # type: ignore[union-attr]
    with pytest.raises(PromotionError, match="run 1 is the champion already"):
        consider(store, CONFIG.promotion, "1")


def test_without_the_configuration_the_end_leaves_the_champion(store: LocalStore, told: list[Any]) -> None:
    finish(store, "1", 0.7)
    assert conclude(store, SnapFusionConfig(), "1") is None
    assert (current_champion(store), told) == (None, [])


def test_who_was_overtaken_while_it_compared_is_kept_out_and_says_so(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("1", "2", "3"):
        finish(store, run, 0.7)
    promote(store, "1", over=None)
    decide = promotion.decide

    def slow(*arguments: Any, **named: Any) -> Any:
        promote(store, "3", over="1")
        return decide(*arguments, **named)

    monkeypatch.setattr(promotion, "decide", slow)
    decision = consider(store, CONFIG.promotion, "2")
    assert decision.outcome == "kept" and "meanwhile run 3 is the champion" in decision.summary


def test_unlike_protocols_are_not_compared(store: LocalStore) -> None:
    finish(store, "1", 0.7)
    conclude(store, CONFIG, "1")
    finish(store, "2", 0.9, noise_seed=2)
    decision = consider(store, CONFIG.promotion, "2")
    assert decision.outcome == "kept" and "noise_seed: 1 and 2" in decision.summary


def test_a_champion_whose_bundle_is_gone_is_said_and_the_run_stays(store: LocalStore) -> None:
    champion = finish(store, "1", 0.7)
    conclude(store, CONFIG, "1")
    assert champion.outputs is not None
    store.delete_object(champion.outputs.files["bundle/manifest.json"].sha256)
    finish(store, "2", 0.9)
    decision = conclude(store, CONFIG, "2")
    assert decision is not None
    assert "kept: run 1 stays champion, because of the bundle of champion run 1 is gone" in decision.summary


def test_terminal_and_card_show_every_condition(store: LocalStore) -> None:
    finish(store, "1", 0.7)
    decision = consider(store, CONFIG.promotion, "1")
    assert any(line.startswith("  ok  latency") and "0.400 of it" in line for line in lines(decision))
    words = str(page(decision))
    assert "run 1 is the champion" in words and all(check.found in words for check in decision.checks)


class Client:
    """Metaflow's Client: runs with tags."""

    def __init__(self, *known: str) -> None:
        self.tags: dict[str, set[str]] = {run: set() for run in known}

    def run(self, path: str) -> Any:
        name = path.split("/")[-1]
        if name not in self.tags:
            raise promotion.MetaflowException(f"no run {name}")
        tags = self.tags[name]
        return SimpleNamespace(id=name, add_tag=tags.add, remove_tag=tags.discard)

    def flow(self, _: str) -> Any:
        return SimpleNamespace(
            runs=lambda tag: [self.run(name) for name, tags in self.tags.items() if tag in tags]
        )


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client("1", "2")
    monkeypatch.setattr(promotion, "Run", found.run)
    monkeypatch.setattr(promotion, "Flow", found.flow)
    monkeypatch.setattr(promotion, "namespace", lambda _: None)
    return found


def test_the_tag_follows_the_champion(store: LocalStore, client: Client) -> None:
    for run in ("1", "2", "3"):
        finish(store, run, 0.7)
    for run, tagged in (("1", ["1"]), ("2", ["2"])):
        promote(store, run, over=current_champion(store))
        assert move_tag(store) == f"the tag 'champion' is on run {run}"
        assert [name for name, tags in client.tags.items() if tags] == tagged
    rollback(store)
    move_tag(store)
    assert client.tags == {"1": {"champion"}, "2": set()}
    promote(store, "3", over="1")
    assert "was not moved: Metaflow's Client knows no run 3 here" in move_tag(store)


@pytest.fixture
def command(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command on the store, in this process."""
    monkeypatch.setattr("flows.environment.prepare_paths", lambda: None)  # it would move the tests elsewhere
    monkeypatch.setenv("METAFLOW_USER", "eva")

    def call(name: str, *arguments: str) -> int:
        module = import_module(f"flows.commands.{name}")
        monkeypatch.setattr(sys, "argv", [name, "--store", store.root, *arguments])
        for moved in ("move_tag", "notify_decision", "notify_rollback"):
            monkeypatch.setattr(module, moved, lambda *_, **__: "the tag moved", raising=False)
        return int(module.main())

    return call


def test_commands_promote_and_roll_back(
    store: LocalStore, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(store, "1", 0.7)
    finish(store, "2", 0.6)
    assert command("promote", "1") == 0
    assert "promoted: run 1 is the champion" in capsys.readouterr().out
    assert command("promote", "2") == 1
    assert "kept: run 1 stays champion" in capsys.readouterr().out
    assert command("promote", "2", "--force", "for a test") == 0
    assert command("rollback", "--reason", "enough") == 0
    assert "run 1 is the champion again, in the place of run 2" in capsys.readouterr().out
    assert command("rollback", "--history") == 0
    history = capsys.readouterr().out.splitlines()
    assert len(history) == 3 and history[1].endswith("by eva: forced: for a test")
    assert command("promote", "9") == 1
    assert capsys.readouterr().err.startswith("error: '9' is no run id, name or tag of a finished run")
