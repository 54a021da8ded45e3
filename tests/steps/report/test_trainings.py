"""What the report says of a training."""

from pathlib import Path

import pytest

from artifacts_schema.training import Candidate, Selection, TrainingRecord
from steps.report.trainings import _metrics

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (0, "handed on: its start (distance 0.01, at the start 0.01)"),
        (50, "handed on: iteration 50 (distance 0.002, at the start 0.01)"),
    ],
)
def test_which_state_is_handed_on(chosen: int, words: str) -> None:
    record = TrainingRecord.from_json((RECORDS / "training_v1.json").read_text())
    candidates = (Candidate(iteration=0, held_out=0.01), Candidate(iteration=50, held_out=0.002))
    selection = Selection(measure="distance", samples=8, candidates=candidates, chosen=chosen)
    assert words in _metrics(record.model_copy(update={"selection": selection}))
    assert "handed on" not in _metrics(record)
