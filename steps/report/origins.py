"""The report's part on where the result comes from: code, base and data, and what each stage was and took."""

from collections.abc import Mapping, Sequence

from artifacts_schema.base import Record
from artifacts_schema.plan import RunPlan
from artifacts_schema.report import CodeVersion, RunReport, StageSummary
from steps.report.content import Block, Heading, Table, Text

_MIB = 1 << 20
_SHORT = 12  # digits of a hash that tell it apart


def origins(report: RunReport, stages: Mapping[str, Record]) -> list[Block]:
    """The blocks, in reading order. `stages` are the records behind the rows of `report.stages`."""
    plan = stages.get("start")
    found = [("code", code_words(report.code))]
    if isinstance(plan, RunPlan):
        found += [("base", plan.base_identity), ("data", data_words(plan))]
    return [
        Heading("Where it comes from"),
        Table(("what", "which"), tuple(found)),
        *_stages(report.stages, stages),
    ]


def code_words(code: CodeVersion | None) -> str:
    """Version, commit and whether the code was the commit's, for people."""
    if code is None:
        return "not known"
    if not code.commit:
        return f"version {code.version}, not from a git checkout"
    state = "with changes that are in no commit" if code.dirty else "as committed"
    return f"version {code.version}, commit {code.commit}, {state}"


def data_words(plan: RunPlan) -> str:
    """What the data were prepared from, for people."""
    raw = plan.raw_data
    if raw.files:
        size = sum(file.bytes for file in raw.files)
        words = (
            f"{plan.data.source}: {len(raw.files)} shards, {size / _MIB:.1f} MiB, together {raw.identity()}"
        )
        left_out = plan.data.skipped | plan.data.filtered
        counts = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        return f"{words}; left out of {plan.data.examined} pictures: {counts}" if counts else words
    packages = ", ".join(f"{name} {version}" for name, version in raw.packages.items())
    return f"{plan.data.source}: {packages or 'it is not known from what'}"


def cache_word(row: StageSummary) -> str:
    """What the cache did for a stage."""
    return {True: "hit", False: "miss", None: "not known"}[row.cached]


def _stages(rows: Sequence[StageSummary], stages: Mapping[str, Record]) -> list[Block]:
    """Where the time and the memory went; a stage from the cache names the run that made it."""
    known = [(row, origin) for row in rows if (origin := stages[row.stage].provenance)]
    if not known:
        return []
    cells = tuple(
        (
            row.stage,
            cache_word(row),
            f"{origin.wall_time_s:.1f} s",
            f"{origin.peak_memory_bytes / _MIB:.0f} MiB",
            f"{origin.device}, threads: {origin.threads}",
            origin.run_id.rpartition("/")[2],
            str(row.version or "-"),
            row.key[:_SHORT] or "-",
            row.code or "-",
        )
        for row, origin in known
    )
    spent = sum(origin.wall_time_s for row, origin in known if not row.cached)
    saved = sum(origin.wall_time_s for row, origin in known if row.cached)
    headers = (
        "stage", "cache", "time", "peak memory", "on", "made by run", "stage version", "key", "made with code",
    )  # fmt: skip
    return [
        Heading("Time and memory"),
        Text(f"{spent:.0f} s in stages; {saved:.0f} s more when those were made that the cache had."),
        Table(headers, cells),
    ]
