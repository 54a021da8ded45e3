"""Parts of the method, end to end on the micro base: "8 steps only", a given architecture, the export alone, a rehearsal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.report import RunReport
from steps.pretraining.micro import write_micro_base
from steps.unet.architecture import remove_unit, to_payload
from steps.unet.blocks import full_spec
from tests.flows.in_one_process import finished
from tests.flows.launched import ROOT, SMOKE

pytestmark = pytest.mark.long

PRUNING = ["robust_training", "architecture_evolution"]
UNET = ["velocity_finetuning", *PRUNING, "teacher_16", "student_16", "student_8"]
_RUN = '[run]\nname = "smoke"\n'


def preset(*, skip: list[str] = [], evolution: str = "") -> str:  # noqa: B006 - read only
    """The smoke preset with these stages left out."""
    text = SMOKE.read_text().replace(_RUN, f"{_RUN}skip = {json.dumps(skip)}\n")
    text = text.replace("[architecture_evolution]\n", f"[architecture_evolution]\n{evolution}\n", 1)
    return text + "\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that the runs share their cache."""
    return tmp_path_factory.mktemp("parts")


def done(home: Path, text: str, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, RunReport]:
    """What a run printed, and its report."""
    found = finished(home, text, name)
    return capsys.readouterr().out, found


def manifest(found: RunReport) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((Path(found.bundle) / "manifest.json").read_text())
    return payload


def titles(found: RunReport) -> dict[str, str]:
    return {row["variant"]: row["title"] for row in found.evaluations}


Said = pytest.CaptureFixture[str]


def test_only_the_steps(home: Path, capsys: Said) -> None:
    skip = [*PRUNING, "student_16", "decoder_distillation"]
    said, found = done(home, preset(skip=skip), "1", capsys)
    for stage in skip:
        assert f"{stage}: skipped, not asked for (run.skip)" in said
    assert any(
        "what ships is the student of student_8 with the base's decoder" in label for label in found.labels
    )
    assert set(titles(found)) == {"base_50", "base_8", "student_8"}
    assert "left out student_8_small_decoder" in said
    assert not [name for name in found.headline if name.startswith(("unet.", "decoder."))]
    assert "student8_vs_base50.clip_difference" in found.headline
    shipped = manifest(found)
    assert shipped["steps"] == 8 and set(shipped["weights"]) == {"unet", "base"}
    assert shipped["drawing"]["worst_psnr_db"] >= 30


def test_the_papers_unet_instead_of_a_search(home: Path, capsys: Said) -> None:
    given = 'architecture = "snapfusion-sd15"'
    said, found = done(home, preset(skip=["robust_training"], evolution=given), "2", capsys)
    assert (
        "velocity_finetuning: cache hit" in said and "teacher_16: cache hit" in said
    )  # what is the same is reused
    assert (
        "robust_training: skipped, not asked for (run.skip); hands on the weights of velocity_finetuning"
        in said
    )
    assert "unet.param_ratio" in found.headline
    assert "student8_vs_base50.clip_difference" in found.headline
    assert manifest(found)["drawing"]["worst_psnr_db"] >= 30


def test_only_the_pruning_with_an_architecture_from_a_file(home: Path, capsys: Said) -> None:
    folder = write_micro_base(home / "micro", seed=0)
    unet = json.loads((folder / "unet/config.json").read_text())
    spec = remove_unit(full_spec(unet), unet, "mid.attentions.0", name="without the middle's attention")
    path = home / "spec.json"
    path.write_text(json.dumps({"architecture": to_payload(spec)}))
    skip = ["robust_training", "teacher_16", "student_16", "student_8", "decoder_distillation"]
    _, found = done(home, preset(skip=skip, evolution=f'architecture = "{path}"'), "3", capsys)
    assert any("what ships is the pruned UNet with the base's decoder" in label for label in found.labels)
    assert titles(found)["student_8"] == "pruned UNet, 4 steps"
    assert "shipped_vs_base50.clip_difference" in found.headline
    assert manifest(found)["steps"] == 4


def test_only_the_decoder_and_only_the_export(home: Path, capsys: Said) -> None:
    _, decoder = done(home, preset(skip=UNET), "4", capsys)
    assert "decoder.param_ratio" in decoder.headline
    assert titles(decoder)["student_8_small_decoder"] == "base, 4 steps, small decoder"
    assert manifest(decoder)["model_prediction"] == "epsilon"
    said, export = done(home, preset(skip=[*UNET, "decoder_distillation"]), "5", capsys)
    assert set(titles(export)) == {"base_50", "base_8"}
    assert set(manifest(export)["weights"]) == {"base"}
    assert "student_8: skipped, not asked for (run.skip); hands on the base's own" in said


def test_a_rehearsal_tells_what_the_run_will_take(home: Path) -> None:
    config = home / "rehearsed.toml"  # without what only takes time here
    config.write_text(preset(skip=[*PRUNING, "student_16", "decoder_distillation"]))
    rehearsed = subprocess.run(
        [sys.executable, "-m", "flows.commands.rehearse", "--config", str(config)],
        env=os.environ | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert rehearsed.returncode == 0, rehearsed.stdout[-3000:] + rehearsed.stderr[-3000:]
    table = rehearsed.stdout[rehearsed.stdout.index("rehearsal of smoke: it fits") :]
    for stage in (
        "start",
        "velocity_finetuning",
        "student_8",
        "evaluation base_50",
        "sum, one after the other",
    ):
        assert stage in table
    assert (home / ".snapfusion/store-rehearsal").is_dir()
    (folder,) = (home / ".snapfusion/runs-rehearsal").iterdir()
    labels = json.loads((folder / "report.json").read_text())["labels"]
    assert any(label.startswith("rehearsal:") for label in labels)
    wrong = subprocess.run(
        [sys.executable, "-m", "flows.commands.rehearse", "--preset", "sd15_24g"],
        env=os.environ | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert wrong.returncode == 1 and "did you mean sd15_24gb?" in wrong.stderr
