"""Two runs of the real flow, the second out of the cache but for one stage, and the flow that compares them."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flows.launched import ROOT, SMOKE, Ended, SmokeRun, report, run

COMPARE = ROOT / "flows" / "compare_flow.py"
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Compared:
    """Home of two smoke runs, "first" and "second" (another learning rate of student_8), and what came of comparing."""

    home: Path
    second: Ended
    compared: Ended


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, smoke_run: SmokeRun) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    home, ended = smoke_run.seed(folder / "home"), []
    for name, rate in (("first", "1e-4"), ("second", "3e-4")):  # the first is the preset
        config = folder / f"{name}.toml"
        text = SMOKE.read_text().replace('name = "smoke"', f'name = "{name}"')
        config.write_text(
            text.replace("[student_8.training]", f"[student_8.training]\nlearning_rate = {rate}")
        )
        ended.append(run(home, "--config", "config", str(config), "run"))
        assert ended[-1].returncode == 0, ended[-1].stdout[-4000:] + ended[-1].stderr[-2000:]
    found = run(home, "run", "--runs", "first,second", script=COMPARE)
    return Compared(home, ended[1], found)


def card(home: Path, *arguments: str, script: Path) -> str:
    """All that a card shows, as JSON."""
    target = home.parent / "card.html"
    found = run(home, "card", "get", *arguments, str(target), script=script)
    assert found.returncode == 0, found.stderr[-2000:]
    data = re.search(r'__MF_DATA__\["[^"]+"\] = "([^"]+)"', target.read_text())
    assert data
    return base64.b64decode(data[1]).decode()


def test_the_card_sets_both_runs_side_by_side(compared: Compared) -> None:
    assert compared.compared.returncode == 0, compared.compared.stdout[-3000:]
    run_id = re.search(r"card view (\d+)/start", compared.compared.stdout)
    assert run_id and "Smoke: no number here means anything" in compared.compared.stdout
    shown = card(compared.home, f"{run_id[1]}/start", "--id", "comparison", script=COMPARE)
    for words in (
        "student_8.training.learning_rate",
        "second and first part at student_8",
        "more captions",
        "vegaChart",
    ):
        assert words in shown


def test_the_second_run_s_own_card_says_the_same(compared: Compared) -> None:
    own = Path(report(compared.home)["folder"]).name
    shown = card(
        compared.home, f"{own}/report", "--id", "report", script=ROOT / "flows" / "snapfusion_flow.py"
    )
    assert "Beside the champion and earlier runs" in shown
    assert "second and first part at student_8" in shown


def test_tags_and_small_artifacts_tell_the_runs_apart(compared: Compared) -> None:
    own = Path(report(compared.home)["folder"]).name
    listed = run(compared.home, "tag", "list", "--run-id", own)
    for tag in ("name:second", "preset:smoke", "student_8.learning_rate:3e-4", "smoke", "mac:"):
        assert tag in listed.stdout + listed.stderr
    values = {name: artifact(compared.home, own, name) for name in ("headline", "config_changes", "verdict")}
    assert values["config_changes"] == {"student_8.training.learning_rate": 3e-4}
    assert "unet.param_ratio" in values["headline"] and "first" in values["verdict"]


def artifact(home: Path, own: str, name: str) -> Any:
    """An artifact of a run's end, through Metaflow's client."""
    program = home.parent / "read.py"
    program.write_text(
        "import json, metaflow\n"
        f"metaflow.namespace(None); metaflow.metadata('local@{home}')\n"
        f"print(json.dumps(metaflow.Run('SnapFusionFlow/{own}')['end'].task['{name}'].data))\n"
    )
    return json.loads(run(home, script=program).stdout)


def test_a_card_of_a_stage_is_light(compared: Compared) -> None:
    own = Path(report(compared.home)["folder"]).name
    sizes = [path.stat().st_size for path in compared.home.rglob("*.html") if f"/{own}/" in str(path)]
    # Only the report, and what was worked on and not cached, may need scripts.
    assert len(sizes) > 10 and sum(size > 1e5 for size in sizes) <= 4


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ("first,secnod", "did you mean 'second'"),
        ("first", "2 to 6 different runs"),
        ("first,1", "no run id, name or tag"),
    ],
)
def test_bad_references_are_refused_without_a_traceback(compared: Compared, runs: str, words: str) -> None:
    found = run(compared.home, "run", "--runs", runs, script=COMPARE)
    assert found.returncode != 0
    output = found.stdout + found.stderr
    assert "Runs not compared" in output and words in output and "Traceback" not in output
