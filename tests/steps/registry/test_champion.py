import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from steps.files.errors import DamagedError, PromotionError
from steps.registry.champion import (
    DOCUMENT,
    champion_history,
    champion_report,
    current_champion,
    promote,
    rollback,
)
from steps.store import LocalStore

Finish = Callable[[str], Any]


def _reign(store: LocalStore, finished: Finish, *runs: str) -> None:
    for run in runs:
        finished(run)
        promote(store, run, over=current_champion(store))


def test_a_store_without_promotions_has_no_champion(store: LocalStore) -> None:
    assert current_champion(store) is None
    assert champion_report(store) is None


def test_every_change_stays_in_the_history(store: LocalStore, finished: Finish) -> None:
    _reign(store, finished, "1", "2")
    rollback(store, by="eva", reason="worse hands")
    events = [(item.event, item.run, item.replaced) for item in champion_history(store).events]
    assert events == [("promoted", "1", None), ("promoted", "2", "1"), ("rolled_back", "1", "2")]
    last = champion_history(store).events[-1]
    assert (last.by, last.reason) == ("eva", "worse hands")
    assert current_champion(store) == "1"


def test_who_was_compared_with_an_earlier_champion_does_not_take_the_later_ones_place(
    store: LocalStore, finished: Finish
) -> None:
    _reign(store, finished, "1", "2")
    finished("3")
    with pytest.raises(
        PromotionError, match=r"place of run 1, but meanwhile run 2 is the champion.*promote 3"
    ):
        promote(store, "3", over="1")
    assert current_champion(store) == "2"


def test_a_swap_that_somebody_else_won_is_noticed(
    store: LocalStore, finished: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished("1"), finished("2")
    swap = store.swap_document

    def late(key: str, old: str | None, new: str) -> bool:
        monkeypatch.setattr(store, "swap_document", swap)
        promote(store, "2", over=None)
        return swap(key, old, new)

    monkeypatch.setattr(store, "swap_document", late)
    with pytest.raises(PromotionError, match="meanwhile run 2 is the champion"):
        promote(store, "1", over=None)
    assert [event.run for event in champion_history(store).events] == ["2"]


def test_a_promotion_whose_answer_was_lost_counts(
    store: LocalStore, finished: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished("1")
    swap = store.swap_document
    monkeypatch.setattr(store, "swap_document", lambda *arguments: swap(*arguments) and False)
    assert promote(store, "1", over=None).run == "1"


@pytest.mark.parametrize(
    ("rolled", "champion"), [((None,), "2"), ((None, None), "1"), (("1",), "1"), ((None, "3"), "3")]
)
def test_rolling_back_leads_to_earlier_champions(
    store: LocalStore, finished: Finish, rolled: tuple[str | None, ...], champion: str
) -> None:
    _reign(store, finished, "1", "2", "3")
    for run in rolled:
        rollback(store, run)
    assert current_champion(store) == champion


def test_rolling_back_needs_an_earlier_champion(store: LocalStore, finished: Finish) -> None:
    with pytest.raises(PromotionError, match="the champion is none"):
        rollback(store)
    _reign(store, finished, "1")
    with pytest.raises(PromotionError, match="nothing to roll back to: the champion is 1"):
        rollback(store)
    with pytest.raises(PromotionError, match=r"run 9 never was champion; champions so far: 1"):
        rollback(store, "9")
    with pytest.raises(PromotionError, match="run 1 is the champion already"):
        rollback(store, "1")


def test_a_run_without_report_or_bundle_is_no_champion(store: LocalStore, finished: Finish) -> None:
    with pytest.raises(PromotionError, match="run 1 has no report in the store"):
        promote(store, "1", over=None)
    _reign(store, finished, "1", "2")
    for run in ("1", "2"):
        store.delete_object(finished(run).outputs.files["bundle/manifest.json"].sha256)
    with pytest.raises(PromotionError, match=r"bundle of champion run 2 is gone.*bundle/manifest\.json"):
        champion_report(store)
    with pytest.raises(PromotionError, match="bundle of run 1 is gone"):
        rollback(store)


def test_a_damaged_history_is_not_taken_for_none(store: LocalStore, finished: Finish) -> None:
    finished("1")
    store.put_document(DOCUMENT, '{"schema": "snapfusion.report", "version": 1}')
    with pytest.raises(DamagedError, match="no history of champions"):
        promote(store, "1", over=None)


_PROMOTE = """
import sys
from pathlib import Path
from steps.files.errors import PromotionError
from steps.registry.champion import promote
from steps.store import LocalStore
store = LocalStore(Path(sys.argv[1]), durable=False)
print("ready", flush=True)
over = sys.stdin.readline().strip() or None
try:
    promote(store, sys.argv[2], over=over)
    print("won")
except PromotionError as error:
    print(error)
"""


def _at_once(store: LocalStore, runs: list[str], compared: str) -> list[str]:
    """What each of the processes says that promote one of the runs over the same champion, all at the same time."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", _PROMOTE, store.root, run], **pipes) for run in runs]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * len(runs)  # type: ignore[union-attr]
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(lambda process: process.communicate(f"{compared}\n")[0], started))


def test_of_ten_promotions_at_once_one_wins_and_the_others_say_so(
    store: LocalStore, finished: Finish
) -> None:
    for step in ("first", "second"):
        compared = current_champion(store) or ""
        runs = [f"{step}-{number}" for number in range(10)]
        for run in runs:
            finished(run)
        said = _at_once(store, runs, compared)
        winner = current_champion(store)
        assert said.count("won\n") == 1 and said[runs.index(str(winner))] == "won\n"
        assert sum(f"meanwhile run {winner} is the champion" in text for text in said) == 9
    assert len(champion_history(store).events) == 2


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, steps.registry.champion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
