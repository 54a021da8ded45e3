"""An arm is a few lines over a run's configuration; lines that change nothing are refused."""

from pathlib import Path

import pytest

from artifacts_schema.ablation import AblationConfig, ArmConfig, read_overlay, trained
from artifacts_schema.config import InvalidConfig, SnapFusionConfig, load_config_file
from artifacts_schema.report import RunReport
from steps.ablation.prepare import BUILT_IN, key_of, overlays
from steps.ablation.students import phases
from steps.files.errors import ConfigError

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "configs" / "ablations"
RUN = load_config_file(ROOT / "configs" / "openmoji_full.toml")
COMMON = AblationConfig()


def test_every_shipped_overlay_changes_something_and_asks_something() -> None:
    found = overlays(COMMON, RUN, FOLDER)
    assert {item.arm.arm for item in found} == {"reference", *"abcdefghij"}
    assert all(item.question for item in found)
    assert [item.name for item in found if not item.changes] == ["reference"]
    at_eight = {item.arm.arm for item in found if {2, 8} <= set(item.arm.steps)}
    assert at_eight == {"reference", "c", "f", "g"}


def test_arms_have_the_common_length() -> None:
    changed = trained(SnapFusionConfig(), AblationConfig(iterations=2, batch_size=3))
    assert {getattr(changed, name).training.iterations for name in ("student_8", "decoder_distillation")} == {
        2
    }
    overlay = read_overlay("x", "[student_8.training]\nlearning_rate = 0.5\n", RUN, COMMON)
    assert overlay.changes == {"student_8.training.learning_rate": 0.5}
    assert overlay.config["student_8"]["training"]["iterations"] == 600


@pytest.mark.parametrize(
    "text",
    [
        "# nothing at all\n",
        f"[step_distillation]\ngamma = {RUN.step_distillation.gamma}\n",
        '[ablation]\narm = "a"\nsteps = [8]\nteacher_steps = 16\n',
    ],
)
def test_an_overlay_that_changes_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="overlay same changes nothing"):
        read_overlay("same", text, RUN, COMMON)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[step_distillation]\ngama = 1\n", r"overlay bad: .*\n.*did you mean 'step_distillation.gamma'"),
        ('[ablation]\nkind = "other"\n', r"ablation\.kind"),
        ("[ablation]\nteacher_steps = 12\nsteps = [8]\n", "teacher_steps must be a multiple"),
        ("[ablation]\nteacher_steps = 2\n", "at least twice as many"),
        ("[ablation]\nconditioned = true\nprogressive = true\n", "in one phase"),
        ("[ablation\n", "not valid TOML"),
    ],
)
def test_mistakes_in_an_overlay_are_named(text: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        read_overlay("bad", text, RUN, COMMON)


def test_only_the_named_arms_run_and_all_of_them_must_be_there(tmp_path: Path) -> None:
    found = overlays(AblationConfig(arms=("c_vanilla",)), RUN, FOLDER)
    assert [item.name for item in found] == ["reference", "c_vanilla"]
    with pytest.raises(ConfigError, match=r"arms names z, which .* lacks"):
        overlays(AblationConfig(arms=("z",)), RUN, FOLDER)
    with pytest.raises(ConfigError, match="found none"):
        overlays(COMMON, RUN, tmp_path)


@pytest.mark.parametrize(
    ("arm", "steps", "expected"),
    [
        (ArmConfig(), 2, [(16, 2)]),
        (ArmConfig(teacher_steps=64, progressive=True), 8, [(64, 32), (32, 16), (16, 8)]),
        (ArmConfig(progressive=True), 2, [(16, 8), (8, 4), (4, 2)]),
    ],
)
def test_phases(arm: ArmConfig, steps: int, expected: list[tuple[int, int]]) -> None:
    assert phases(arm, steps) == expected


def test_an_arm_is_found_again_by_what_it_does_and_not_by_where() -> None:
    report = RunReport(stage="report", name="x", smoke=False, inputs={}, headline={})
    arm = read_overlay("reference", BUILT_IN, RUN, COMMON)
    key = key_of(arm, COMMON, report, "code")
    assert key == key_of(arm, COMMON.model_copy(update={"store": "elsewhere", "threads": 3}), report, "code")
    for other in (COMMON.model_copy(update={"pictures": 9}), COMMON.model_copy(update={"iterations": 9})):
        assert key != key_of(arm, other, report, "code")
    assert key != key_of(arm, COMMON, report, "other code")
