"""The flow that trains one stage over several nodes: what it refuses, and a stage that the main flow then finds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.config import parse_config
from flows import nodes, runtime, stages
from flows.nodes import NodesRefused, OneStage, check, needed
from flows.remote import RemoteRefused
from steps.files.errors import ConfigError, StoreError
from tests.flows.launched import ROOT, SMOKE, SmokeRun, report, run

FLOW = ROOT / "flows" / "nodes_flow.py"


@pytest.mark.parametrize(
    ("stage", "count", "config", "said"),
    [
        ("studnet_8", 2, {}, "studnet_8 is no stage .* did you mean student_8"),
        ("evaluation", 2, {}, "evaluation does not train .* those that train: velocity_finetuning"),
        ("student_4", 2, {}, "student_4 does not train in this configuration"),
        ("teacher_16", 0, {}, "--nodes must be at least 1, found 0"),
        ("teacher_16", 7, {}, r"teacher_16\.training\.batch_size .* nodes \* compute\.processes = 7"),
        ("teacher_16", 2, {"store": {"cache": False}}, r"store\.cache is false"),
        ("student_16", 2, {"run": {"skip": ["student_16"]}}, r"student_16 is in run\.skip"),
    ],
)
def test_what_nodes_cannot_train_is_refused(
    stage: str, count: int, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check(parse_config(config), stage, count)


def test_the_stages_before_one_come_in_order() -> None:
    assert needed(parse_config({}), "student_8") == [
        "latency_profile", "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16",
        "student_16",
    ]  # fmt: skip
    assert needed(parse_config({}), "decoder_distillation") == []


def test_the_first_stage_that_is_not_in_the_cache_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: Any
) -> None:
    for module in (runtime, stages):
        monkeypatch.setattr(module, "WORK_ROOT", tmp_path)
    config = parse_config({"base": {"path": "micro", "warm_start": False}, "data": {"limit": 32}})
    with pytest.raises(
        StoreError, match="start is not in the cache of the store .* student_8 needs it: run flows/snap"
    ):
        nodes.inputs_of(config, "student_8")


def test_the_step_that_trains_has_the_resources_of_the_stage_and_nothing_is_deployed() -> None:
    config = parse_config({"resources": {"default": {"cpu": 1}, "student_8": {"gpu": 4}}})
    tables = OneStage.tables(SimpleNamespace(), config, ["start", "train"], ["run", "--stage", "student_8"])  # type: ignore[arg-type]
    assert tables["train"].gpu == 4 and tables["train"].cpu == 1 and tables["start"].gpu is None
    with pytest.raises(NodesRefused, match="studnet_8 is no stage"):
        OneStage.tables(SimpleNamespace(), config, ["start", "train"], ["run", "--stage=studnet_8"])  # type: ignore[arg-type]
    with pytest.raises(RemoteRefused, match="Step Functions have no parallel steps"):
        OneStage.tables(SimpleNamespace(), config, ["start"], ["step-functions", "create"])  # type: ignore[arg-type]


@pytest.mark.long
def test_a_stage_trained_by_two_nodes_is_found_by_the_run(smoke_run: SmokeRun, tmp_path: Path) -> None:
    home = smoke_run.seed(tmp_path / "home")
    (entry,) = (home / ".snapfusion" / "store" / "documents" / "stages" / "student_8").iterdir()
    before = entry.read_text()
    entry.unlink()
    words = ("--config", "config", str(SMOKE), "run")
    trained = run(home, *words, "--stage", "student_8", "--nodes", "2", script=FLOW)
    assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-2000:]
    assert entry.read_text() != before
    found = run(home, *words)
    assert found.returncode == 0 and "student_8: cache hit" in found.stdout
    assert report(home)["stages"]
