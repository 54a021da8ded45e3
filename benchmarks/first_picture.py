"""Seconds from an empty environment to the first picture of a student's folder.

    python -m benchmarks.first_picture .snapfusion/runs/<run id>/student --json benchmarks/results/first_picture.json
    python -m benchmarks.first_picture FOLDER --cold          # packages come from the registry, not from uv's cache

Timed is what a person does who has uv and a fetched folder: make an environment, install the locked versions of diffusers,
transformers and torch into it, and run the three lines of the card in it. Nothing of this project is on its path.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.published import ROOT, Metric, publish, result

PACKAGES = ("diffusers", "transformers", "torch")
THREE_LINES = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe("woman surfing", num_inference_steps=int(sys.argv[3]), guidance_scale=3.0).images[0].save(sys.argv[2])
"""
_UV = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


def make_environment(folder: Path, *options: str, cache: Path | None = None) -> Path:
    """A new environment with `PACKAGES` and what they need, in the locked versions; its Python.

    `options` are uv's, such as --offline; `cache` is another cache than the user's.
    """
    if _UV is None:
        raise RuntimeError(
            "expected uv beside this Python or on the path, found none: `make install` puts it there"
        )
    environment = os.environ | ({"UV_CACHE_DIR": str(cache)} if cache else {})
    python = folder / "bin" / "python"
    install = [
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        "--constraint",
        str(ROOT / "constraints.txt"),
    ]
    for arguments in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        [*install, *options, *PACKAGES],
    ):
        subprocess.run([_UV, *arguments], check=True, env=environment)
    return python


def run_python(python: Path, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """That Python in an empty folder, with nothing of this project or of the user's caches of models."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SNAPFUSION", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(python), *arguments],
        cwd=work, env=kept | {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip


def first_picture(student: Path, steps: int, *, cold: bool) -> tuple[float, float]:
    """Seconds until the environment is there, and until the picture is. Raises RuntimeError where none is drawn."""
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        started = time.perf_counter()
        python = make_environment(work / "environment", cache=work / "cache" if cold else None)
        installed = time.perf_counter() - started
        done = run_python(python, work, "-c", THREE_LINES, str(student), "picture.png", str(steps))
        if done.returncode or not (work / "picture.png").is_file():
            raise RuntimeError(f"no picture was drawn:\n{done.stderr}")
        return installed, time.perf_counter() - started


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", type=Path, help="a student's folder")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="with an empty cache of packages")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times = [
        first_picture(options.student.resolve(), options.steps, cold=options.cold)
        for _ in range(options.repeats)
    ]
    cache = "empty" if options.cold else "warm"
    name = "student.first_picture_seconds" + (".cold" if options.cold else "")
    rows = [
        _row(name, [whole for _, whole in times], f"uv's cache {cache}; median, smallest and largest"),
        _row(f"{name}.installing", [made for made, _ in times], "of that, making the environment"),
    ]
    publish(result(rows, module="benchmarks.first_picture", seed=0), options.json)
    return 0


def _row(name: str, seconds: list[float], note: str) -> Metric:
    return Metric(name, statistics.median(seconds), "s", len(seconds), min(seconds), max(seconds), note)


if __name__ == "__main__":
    sys.exit(main())
