"""The card of a comparison in a browser: no wider than Metaflow's UI shows, and it folds."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from metaflow.cards import BlankCard

from steps.comparison.page import compare_runs, comparison_page
from steps.store import LocalStore
from tests.flows.test_cards import elements
from tests.steps.comparison.made import made_run

CHROMIUM = shutil.which("chromium")
WIDTH = 1012
# What the page is and does: its width, the widest thing in it, and the height of what is folded before and after a click.
MEASURE = """
setTimeout(() => {
  const told = (name, value) => document.documentElement.setAttribute("data-" + name, value);
  const rights = [...document.querySelectorAll(".card_app *")].map(e => e.getBoundingClientRect().right);
  told("scroll", document.documentElement.scrollWidth);
  told("right", Math.ceil(Math.max(...rights)));
  told("charts", document.querySelectorAll("svg.marks, canvas.marks").length);
  const fold = document.querySelector("details");
  told("folded", Math.round(fold.getBoundingClientRect().height));
  fold.querySelector("summary").click();
  // The second run alone: the first one's marks fade.
  const faded = () => [...document.querySelectorAll(".mark-symbol.role-mark path")]
    .filter(e => Number(e.getAttribute("opacity") ?? 1) < 0.2).length;
  told("faded", faded());
  document.querySelectorAll(".role-legend-symbol path")[1].dispatchEvent(new MouseEvent("click", {bubbles: true}));
  setTimeout(() => told("isolated", faded()), 1000);
  told("unfolded", Math.round(fold.getBoundingClientRect().height));
}, 4000);
"""


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
@pytest.mark.parametrize("count", [2, 6])
def test_nothing_is_wider_than_the_card_and_the_fold_opens(tmp_path: Path, count: int) -> None:
    assert CHROMIUM
    store = LocalStore(tmp_path / "store")
    names = ["a" * 60, "b c" * 20]
    runs = [made_run(store, str(n), clip=n / 50, name=names[n % 2] + str(n)) for n in range(count)]
    page = elements(comparison_page(store, compare_runs(store, runs)))
    section = {"type": "section", "contents": page}
    text = BlankCard().render(SimpleNamespace(pathspec="CompareFlow/1/start/1"), components=[section])
    path = tmp_path / "card.html"
    path.write_text(text + f"<script>{MEASURE}</script>", encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    found = subprocess.run(
        [CHROMIUM, *arguments, f"--window-size={WIDTH},900", "--hide-scrollbars", "--virtual-time-budget=15000",
         "--dump-dom", f"{path.as_uri()}?embed=true"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    told = {name: int(value) for name, value in re.findall(r'data-(\w+)="(\d+)"', found.stdout[:2000])}
    assert told["scroll"] <= WIDTH and told["right"] <= WIDTH
    assert told["charts"] == 1
    assert (told["faded"], told["isolated"]) == (0, count)  # all but one run, and the real pictures
    assert told["unfolded"] > told["folded"] + 50
