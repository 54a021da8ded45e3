"""A student and its base from one prompt and one noise."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from steps.files.errors import SnapFusionError
from steps.report.side_by_side import SideBySide, base_pipeline, is_base_of
from tests.students import MicroStudent, micro_student

HOW = {"guidance_scale": 3.0, "steps": 2, "base_steps": 4}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> MicroStudent:
    return micro_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def pair(student: MicroStudent) -> SideBySide:
    shipped = DiffusionPipeline.from_pretrained(student.folder, trust_remote_code=True)
    shipped.set_progress_bar_config(disable=True)
    return SideBySide(shipped, base_pipeline(student.base.path))


def test_the_seed_decides_both_pictures(pair: SideBySide) -> None:
    one, again, other = (pair.draw("red flag", seed=seed, **HOW) for seed in (1, 1, 2))
    for first, same, different in zip(one, again, other, strict=True):
        assert first and same and different
        assert first.picture.size == (384, 384) and first.seconds > 0
        assert (np.asarray(first.picture) == np.asarray(same.picture)).all()
        assert (np.asarray(first.picture) != np.asarray(different.picture)).any()


def test_without_a_base_the_student_draws_alone(pair: SideBySide) -> None:
    base, drawn = SideBySide(pair.student).draw("red flag", seed=1, **HOW)
    assert base is None
    assert (np.asarray(drawn.picture) == np.asarray(pair.draw("red flag", seed=1, **HOW)[1].picture)).all()


def test_an_empty_prompt_gets_a_message(pair: SideBySide) -> None:
    with pytest.raises(SnapFusionError, match="Type a prompt first"):
        pair.draw(" \n", seed=1, **HOW)


def test_a_base_is_known_by_what_reads_the_prompt(student: MicroStudent, tmp_path: Path) -> None:
    assert is_base_of(student.base.path, student.folder)
    assert not is_base_of(tmp_path / "missing", student.folder)
    other = tmp_path / "other"
    shutil.copytree(student.folder, other)
    (other / "text_encoder" / "model.safetensors").write_bytes(b"another")
    assert not is_base_of(other, student.folder)
