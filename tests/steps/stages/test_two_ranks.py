"""Two processes train every stage as one does on both their shares."""

from pathlib import Path

import pytest

from tests.steps.stages.two_ranks import STAGES, difference, run


@pytest.mark.long
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_of_two_ranks_ends_where_one_does(name: str, tmp_path: Path) -> None:
    one, alone = run(name, tmp_path / "one", 1)
    two, together = run(name, tmp_path / "two", 2)
    found = difference(alone, together)
    assert found.gradient < 1e-5
    assert found.weights < 1e-5, found.tensor
    if name != "architecture_evolution":
        assert two.selection.chosen == one.selection.chosen
