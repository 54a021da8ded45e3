"""Share of small mistakes in the method's code that the tests of the changed module notice.

    python -m benchmarks.mutation_score --mutants 240 --work /tmp/mutants --json benchmarks/results/mutation_score.json

A mutant is one change of arithmetic, a comparison, a condition or a constant; messages, log lines and annotations stay as
they are. A fixed seed draws them from every module of the rooms. Each is loaded in a fork of this process, in which the
heavy libraries are there already, and in the processes that tests start; no file is touched (so that nothing can be
noticed by a hash of the source). It is run against the short tests of its module, its own file first, and against long
ones where there are few others. What is known is kept in
`--work`: start it again to go on, `--part 0/2` and `--part 1/2` at once to use two cores, and without a part to publish.

Why neither tool from PyPI: mutmut 3.8 changes messages and arguments, too, leaves decorated functions out, and takes no
sample; most mutants of cosmic-ray 8.7 shift bits of floats, each takes a new Python, and one that is interrupted stays in
the tree.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.mutants import Mutant, mutants_of, source_of
from benchmarks.published import ROOT, Metric, publish, result

ROOMS = ("diffusion", "evolution", "unet", "training", "stages")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")  # by id, with the reason
# Several processes at once: almost all of their tests are long.
_ALSO_LONG = {f"steps/training/{name}.py" for name in ("following", "nodes", "rank", "ranks")}
_LONGEST_S, _SHORTEST_S = 1800.0, 60.0
_USAGE, _NO_TESTS = 4, 5  # of pytest's exit codes those that say nothing of the mutant
# Python runs it at its start, where it finds it.
_SITE = """
from importlib.machinery import SourceFileLoader

def get_code(loader, name, original=SourceFileLoader.get_code):
    if name != {name!r}:
        return original(loader, name)
    with open({path!r}, encoding="utf-8") as file:
        return compile(file.read(), loader.path, "exec")

SourceFileLoader.get_code = get_code
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: noticed by a failing test, by a test that never ended, or not at all."""

    id: str
    killed: bool
    seconds: float


def modules(room: str) -> list[Path]:
    """The room's modules, relative to the repository."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "steps" / room).glob("*.py"))


def tests_of(module: Path) -> list[str]:
    """The module's tests: files of its room that name it, its own first; of a stage those elsewhere that import it, too.

    All of its room's where there is none.
    """
    room = sorted((ROOT / "tests" / module.parent).glob("test_*.py"))
    stem, package = module.stem, ".".join(module.parent.parts)
    chosen = [path for path in room if re.search(rf"\b{stem}\b", path.read_text(encoding="utf-8"))]
    if module.parent.name == "stages":
        imports = re.compile(rf"^ *from {package}(\.{stem} import| import .*\b{stem}\b)", re.MULTILINE)
        others = [path for path in _all_tests() if path not in room]
        chosen += [path for path in others if imports.search(path.read_text(encoding="utf-8"))]
    return [str(path) for path in sorted(chosen or room, key=lambda path: path.stem != f"test_{stem}")]


@cache
def _all_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("test_*.py"))


def drawn(rooms: list[str], count: int, seed: int) -> list[Mutant]:
    """A random sample of all mutants of the rooms."""
    found = [each for room in rooms for path in modules(room) for each in mutants_of(ROOT, path)]
    return random.Random(seed).sample(found, min(count, len(found)))


def passes(
    tests: list[str], limit_s: float, log: Path, *, also_long: bool, name: str = "", source: str = ""
) -> bool:
    """Whether the tests pass within the limit, with `source` for the module of this name; `log` has their words."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setsid()  # what the tests start goes with them
        _run_tests(tests, log, also_long, name, source)
    until = time.monotonic() + limit_s
    try:
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                if os.waitstatus_to_exitcode(status) in (_USAGE, _NO_TESTS):
                    raise RuntimeError(f"pytest did not run {tests}")
                return status == 0
            time.sleep(0.05)
        return False
    finally:
        _end_group(pid)


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _run_tests(tests: list[str], log: Path, also_long: bool, name: str, source: str) -> None:
    """In the fork: never returns."""
    import pytest

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    status: int = 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            if name:
                _make_mistake(Path(folder), name, source)
            # A plug-in of pytest's comes with the heavy libraries: imported before pytest could rewrite its asserts.
            options = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore:Module already imported",
            ]
            for which in ("not long or long",) if also_long else ("not long", "long"):
                status = int(pytest.main([*options, "-m", which, f"--basetemp={folder}/tests", *tests]))
                if status != _NO_TESTS:  # the long ones where there is no other
                    break
    finally:
        sys.stdout.flush()
        os._exit(status)


def _make_mistake(folder: Path, name: str, source: str) -> None:
    """Here, and in every Python that is started from here."""
    place, site = folder / "mutant.py", folder / "sitecustomize.py"
    place.write_text(source, encoding="utf-8")
    site.write_text(_SITE.format(name=name, path=str(place)), encoding="utf-8")
    before = filter(None, [os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *before])
    sys.path.insert(0, str(folder))  # stays there: ranks are started with this path
    sys.modules.pop("sitecustomize", None)
    importlib.import_module("sitecustomize")


def outcomes(chosen: list[Mutant], work: Path) -> Iterator[Outcome]:
    """Of each mutant, from `work` where it is known. Raises RuntimeError when tests fail without any mistake."""
    limits: dict[Path, float] = {}
    for mutant in chosen:
        tests = tests_of(mutant.path)
        sources = [str(ROOT / mutant.path), *tests]
        digest = hashlib.sha256(
            b"".join([mutant.id.encode(), *(Path(path).read_bytes() for path in sources)])
        )
        note = work / f"{digest.hexdigest()}.json"
        if not note.exists():
            log, also_long = note.with_suffix(".log"), str(mutant.path) in _ALSO_LONG
            if mutant.path not in limits:
                limits[mutant.path] = _limit(tests, log, also_long)
            started, source = time.monotonic(), source_of(ROOT, mutant)
            survived = passes(
                tests, limits[mutant.path], log, also_long=also_long, name=mutant.module, source=source
            )
            found: dict[str, Any] = {
                "id": mutant.id, "killed": not survived, "seconds": time.monotonic() - started,
            }  # fmt: skip
            note.write_text(json.dumps(found))
        yield Outcome(**json.loads(note.read_text()))


def _limit(tests: list[str], log: Path, also_long: bool) -> float:
    """Five times what the tests take without a mistake, in seconds."""
    started = time.monotonic()
    if not passes(tests, _LONGEST_S, log, also_long=also_long):
        raise RuntimeError(f"without any mistake tests of {' '.join(tests)} fail, see {log}")
    return max(5 * (time.monotonic() - started), _SHORTEST_S)


def score(name: str, found: list[Outcome]) -> Metric:
    """Killed over all, with Wilson's interval."""
    n, z = len(found), 1.96
    share = sum(outcome.killed for outcome in found) / n
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return Metric(name, share, "killed / all", n, low, high)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument(
        "--part", default="0/1", help="of n shares of the drawn mutants the i-th, from 0: i/n"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of what is known")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # Each fork has them from here; none of them imports this project.
    import coremltools  # noqa: F401
    import diffusers  # noqa: F401
    import open_clip  # noqa: F401
    import transformers  # noqa: F401

    equivalent = json.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else {}
    chosen = [
        each
        for each in sorted(
            drawn(arguments.rooms, arguments.mutants, arguments.seed), key=lambda each: str(each.path)
        )
        if each.id not in equivalent
    ]  # a module's together: what is interrupted repeats few runs without a mistake
    part, parts = (int(number) for number in arguments.part.split("/"))
    share = slice(len(chosen) * part // parts, len(chosen) * (part + 1) // parts)
    found = []
    for outcome in outcomes(chosen[share], arguments.work):
        found.append(outcome)
        print(
            f"{'killed' if outcome.killed else 'SURVIVED'} {outcome.seconds:.0f} s {outcome.id}", flush=True
        )
    metrics = [score("tests.mutation_score", found)]
    for room in arguments.rooms:
        here = [outcome for outcome in found if outcome.id.startswith(f"steps/{room}/")]
        metrics += [score(f"tests.mutation_score.{room}", here)] if here else []
    document = result(metrics, module="benchmarks.mutation_score", seed=arguments.seed)
    document["survivors"] = [outcome.id for outcome in found if not outcome.killed]
    document["equivalent"] = equivalent
    publish(document, arguments.json)


if __name__ == "__main__":
    main()
