"""The page: the verdict first, then why, then the evidence; pictures by what changed most."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.architecture import StageBlocks
from steps.comparison import own
from steps.comparison.architectures import pieces_of
from steps.comparison.own import beside_others
from steps.comparison.page import compare_runs, comparison_page
from steps.comparison.pictures import caption_rows
from steps.comparison.words import comparison_lines
from steps.report.content import Chart, Folded, Gallery, Grid, Heading, Strips, Verdict
from steps.store import LocalStore
from tests.steps.comparison.made import CAPTIONS, SUBJECT, made_run


def test_the_order_of_the_page(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    runs = [
        made_run(store, "1"),
        made_run(store, "2", clip=0.1, learning_rate=2e-4),
        made_run(store, "3", clip=-0.1),
    ]
    page = comparison_page(store, compare_runs(store, runs))
    kinds = [type(block) for block in page]
    assert kinds[:2] == [Verdict, Verdict]
    titles = [block.text for block in page if isinstance(block, Heading)]
    assert titles == ["Why they differ", "Metrics", "Pictures", "Architecture", "Time, memory, cost"]
    assert kinds.count(Chart) == 1 and Strips in kinds and Folded in kinds
    gallery = next(block for block in page if isinstance(block, Gallery))
    assert gallery.columns == ("real", "run-1", "run-2", "run-3")
    metrics = [block for block in page if isinstance(block, Grid)][1]
    clip = next(row for row in metrics.rows if row[0].text == "CLIP score")
    assert "against run-1: better" in clip[2].small and "against run-1: worse" in clip[3].small


def test_what_changed_most_comes_first_and_each_caption_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    rows = caption_rows(store, [made_run(store, "1"), made_run(store, "2", clip=0.1)], SUBJECT)
    assert [row.caption for row in rows] == list(reversed(CAPTIONS[:6]))
    assert rows[0].change > rows[-1].change > 0
    assert all(row.real is None and len(row.pictures) == 2 for row in rows)


def test_blocks_stand_where_they_run() -> None:
    stage = StageBlocks(
        stage="up.1",
        blocks=("up.1.resnets.0", "up.1.attentions.0", "up.1.attentions.0.copy1", "up.1.attentions.1"),
        removed=("up.1.resnets.1",),
    )
    assert [(name.removeprefix("up.1."), state) for name, state in pieces_of(stage)] == [
        ("resnets.0", "kept"),
        ("attentions.0", "kept"),
        ("attentions.0.copy1", "copied"),
        ("resnets.1", "removed"),
        ("attentions.1", "kept"),
    ]


def test_a_terminal_gets_the_same_as_text_that_obeys_nobody(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    runs = [made_run(store, "1"), made_run(store, "2", clip=0.1, learning_rate=2e-4, name="a\x1b[31m\nb")]
    lines = comparison_lines(store, compare_runs(store, runs))
    assert lines[0].startswith("a [31m b is better than run-1")
    assert any("student_8.training.learning_rate  0.0001" in line for line in lines)
    assert any(line.startswith("CLIP score") and line.endswith("*") for line in lines)
    assert not any("\x1b" in line or "\n" in line for line in lines)


def beside(store: LocalStore, *named: str, **changes: Any) -> tuple[list[str], str]:
    """Text that a run's report says, and the verdict."""
    blocks, verdict = beside_others(store, made_run(store, "9", **changes), named)
    return [
        block.sentence if isinstance(block, Verdict) else getattr(block, "text", "") for block in blocks
    ], verdict


def test_a_run_stands_beside_the_champion_and_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    texts, verdict = beside(store)
    assert "no earlier run" in verdict and "no earlier run" in texts[1]
    made_run(store, "1", name="champ")
    made_run(store, "2", name="before")
    made_run(store, "3", protocol={"noise_seed": 7})
    monkeypatch.setattr(own, "current_champion", lambda _: "1")
    texts, verdict = beside(store, clip=0.1)
    assert "run-9 is better than champ" in verdict and "run-9 is better than before" in verdict
    # Named runs that cannot be compared are said; the run is not lost.
    texts, _ = beside(store, "3", "7")
    assert any("Not compared with run 3" in text and "noise_seed" in text for text in texts)
    assert any("Not compared with run 7" in text for text in texts)


def test_a_run_whose_pictures_are_gone_costs_nobody_a_report(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    gone, damaged = made_run(store, "1", clip=0.2), made_run(store, "2", clip=0.3)
    store.delete_object(gone.evaluations[SUBJECT].point.images.sha256)
    texts, verdict = beside(store, "1", clip=0.1)
    assert any("Not compared with run 1: its pictures are no longer in the store" in text for text in texts)
    assert "run-9 is worse than run-2" in verdict
    path = store.path_of(damaged.evaluations[SUBJECT].point.images)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    texts, verdict = beside(store, clip=0.1)
    assert "Not compared with 2: " in verdict
