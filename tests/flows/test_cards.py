"""Names, captions, tags and messages are shown on cards as text: nothing in them runs, and nothing of them is lost."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metaflow.cards import BlankCard, ProgressBar
from safetensors.torch import save

from artifacts_schema.readers import read_record
from flows import cards, runtime
from steps.evaluation.pictures import png
from steps.report.content import (
    Block,
    Box,
    Cell,
    Chart,
    Folded,
    Gallery,
    Grid,
    Heading,
    PictureRows,
    Strip,
    Strips,
    Table,
    Text,
    Verdict,
)
from steps.report.page import RunRecords, build_page
from steps.store import LocalStore

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"
RUNS = "document.documentElement.setAttribute('ran','yes')"
HOSTILE = f'<img src=x onerror="{RUNS}"> <script>{RUNS}</script> & &lt;b&gt; *s* [l](javascript:1) `c` # h \\'
SHOWN = {"title", "subtitle", "text", "table", "image", "vegaChart", "progressBar"}
PNG = png(torch.zeros(3, 8, 8, dtype=torch.uint8))
CHROMIUM = shutil.which("chromium")


def stored(name: str, **changes: Any) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text()).model_copy(update=changes)


# What only HTML can show, every word of it hostile.
HTML_BLOCKS: list[Block] = [
    Verdict("better", HOSTILE, (Box(HOSTILE, HOSTILE, HOSTILE, "worse", HOSTILE),)),
    Grid((HOSTILE,), ((Cell(HOSTILE, HOSTILE),),)),
    Strips((Strip(HOSTILE, ((HOSTILE, ((HOSTILE, "kept"),)),)),)),
    Gallery((HOSTILE,), ((HOSTILE, ((PNG, HOSTILE), (None, HOSTILE))),)),
    Folded(HOSTILE, (Heading(HOSTILE), Text(HOSTILE))),
]


def hostile_page(store: LocalStore) -> list[Block]:
    """The report of a run in which everything that users and their data name is hostile."""
    pictures = store.put_bytes(save({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}))
    evaluation, training = (
        stored("evaluation_v1", title=HOSTILE, captions=(HOSTILE, HOSTILE)),
        stored("training_v1"),
    )
    decoder = training.model_copy(
        update={"metrics": {"parameter_ratio": 3.0, "mac_ratio": 2.0, "psnr_db": 20.0, HOSTILE: 1.0}}
    )
    compression = stored("compression_v1")
    variants = tuple(
        item.model_copy(update={"passed": False, "note": HOSTILE}) for item in compression.variants
    )
    records = RunRecords(
        name=HOSTILE,
        smoke=True,
        latency_table=stored("latency_v1", device=HOSTILE),
        trainings={"decoder_distillation": decoder, HOSTILE: training},
        evolution=stored("evolution_v1"),
        evaluations=[
            evaluation.model_copy(update={"point": evaluation.point.model_copy(update={"images": pictures})})
        ],
        guidance=[],
        comparisons=[],
        components=[stored("component_v1", parity_note=HOSTILE)],
        manifest=stored("bundle_v1"),
        drawing=stored("bundle_drawing_v1", grid=store.put_bytes(PNG), captions=(HOSTILE,)),
        compression=compression.model_copy(update={"variants": variants}),
    )
    report, plan = stored("report_v1", labels=(HOSTILE,)), stored("run_plan_v1", base_identity=HOSTILE)
    return build_page(records, {row.stage: plan for row in report.stages}, store, report)


def elements(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """What Metaflow is told to show for them."""
    found: list[Any] = []
    cards.render(found, blocks)
    return [component.render() for component in found]


def parts(element: object) -> Iterator[dict[str, Any]]:
    """An element and those in it; not what is within a chart."""
    if isinstance(element, dict):
        if isinstance(element.get("type"), str):
            yield element
        for name, value in element.items():
            if name != "spec":
                yield from parts(value)
    elif isinstance(element, list):
        for value in element:
            yield from parts(value)


@pytest.mark.parametrize(
    "block",
    [
        Heading(HOSTILE),
        Heading(HOSTILE, sub=True),
        Text(HOSTILE),
        Table((HOSTILE,), ((HOSTILE,),)),
        PictureRows(((HOSTILE, PNG),), HOSTILE),
        Chart({}, HOSTILE),
    ],
    ids=lambda block: type(block).__name__,
)
def test_every_block_is_shown_as_text_unchanged(block: Block) -> None:
    found = list(parts(elements([block])))
    assert {part["type"] for part in found} <= SHOWN
    # As many times as the block has it, as it is.
    assert json.dumps(found).count(json.dumps(HOSTILE)) >= str(block).count("onerror")


class Words(HTMLParser):
    """What a line of HTML shows, and what it is made of."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.feed(line)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("block", HTML_BLOCKS, ids=lambda block: type(block).__name__)
def test_html_of_ours_shows_words_as_they_are_in_one_line(block: Block) -> None:
    (element,) = elements([block])
    line = element["source"]
    found = Words(line)
    assert "\n" not in line  # an empty line would end the HTML for a reader of Markdown
    assert found.tags <= {
        "div",
        "span",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "img",
        "details",
        "summary",
    }
    assert found.names <= {"class", "style", "title", "alt", "src"}
    assert HOSTILE in found.words


def test_lines_of_text_beside_html_join_it_and_others_stay_alone() -> None:
    page = [
        Heading("a"),
        Text("b"),
        Heading("c", sub=True),
        HTML_BLOCKS[0],
        Text("d\n\n<e>"),
        Chart({}, "f"),
        Text("g"),
    ]
    assert [element["type"] for element in elements(page)] == [
        "title",
        "markdown",
        "vegaChart",
        "text",
        "text",
    ]
    assert "\n" not in elements(page)[1]["source"]


def test_the_report_is_made_of_such_elements_only(tmp_path: Path) -> None:
    found = parts(elements(hostile_page(LocalStore(tmp_path))))
    assert {part["type"] for part in found} <= SHOWN


def test_what_the_cache_did_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(runtime, "current", SimpleNamespace(card={"progress": shown}))
    result: Any = SimpleNamespace(reason=HOSTILE, key="0" * 64, record=stored("report_v1"))
    runtime._say("start", result)
    (element,) = (component.render() for component in shown)
    assert element["type"] == "text" and HOSTILE in element["text"]


def opened(folder: Path, contents: list[dict[str, Any]]) -> str:
    """The card as Chromium has it after its scripts have run and a mouse has passed over its charts."""
    assert CHROMIUM
    section = {"type": "section", "contents": contents}
    text = BlankCard().render(SimpleNamespace(pathspec="Flow/1/report/2"), components=[section])
    path = folder / "card.html"
    path.write_text(text + f"<script>{MOUSE}</script>", encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    found = subprocess.run(
        [CHROMIUM, *arguments, "--virtual-time-budget=20000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return found.stdout


# Over every mark of every chart; a tooltip that holds a variant's title is put on the page.
MOUSE = """
setTimeout(() => document.querySelectorAll("svg.marks path").forEach(mark => {
  mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true}));
  const tip = document.querySelector("#vg-tooltip-element.visible");
  if (tip && tip.textContent.includes("onerror")) {
    const copy = document.createElement("div");
    copy.innerHTML = tip.innerHTML;
    copy.className = "tooltip";
    document.querySelector(".card_app").append(copy);
  }
}), 5000);
"""


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
def test_nothing_runs_in_a_browser(tmp_path: Path) -> None:
    ran = re.compile(r"<html[^>]* ran=")
    # First that it would be seen here.
    assert ran.search(opened(tmp_path, [{"type": "markdown", "source": HOSTILE}]))
    page = elements([*hostile_page(LocalStore(tmp_path / "store")), *HTML_BLOCKS])
    bar = ProgressBar(max=2, label=HOSTILE)
    bar.update(1, metadata=HOSTILE)
    found = opened(tmp_path, [*page, bar.render()])
    assert not ran.search(found)
    words = html.unescape(re.sub(r"<[^>]*>", "", found.split('class="card_app"')[1]))
    assert f"SnapFusion run: {HOSTILE}" in words
    assert words.count(HOSTILE) > 10
    assert HOSTILE in html.unescape(re.sub(r"<[^>]*>", "", found.split('class="tooltip"')[1]))
