"""The blocks that each run's architecture search has kept, removed and copied."""

from collections.abc import Sequence
from typing import Literal

from artifacts_schema.architecture import StageBlocks
from steps.comparison.runs import Run
from steps.report.content import Block, Heading, Strip, Strips, Text

State = Literal["kept", "removed", "copied"]


def architectures(runs: Sequence[Run]) -> list[Block]:
    """A strip a run, or one where all have the same architecture; nothing where no record is left."""
    known = [(run, run.evolution) for run in runs]
    same = len(runs) > 1 and len({found.architecture.layout() if found else "" for _, found in known}) == 1
    strips = tuple(
        Strip(
            f"{'all' if same else run.title}: {len(found.architecture.removed)} removed, "
            f"{len(found.architecture.copied)} copied, "
            f"{found.parameters / 1e6:.2f} M parameters",
            tuple((stage.stage, pieces_of(stage)) for stage in found.architecture.stages),
        )
        for run, found in known
        if found
    )
    words = (
        "The runs have the same architecture."
        if same
        else "Blocks in order of execution; point at one for its name."
    )
    return (
        [Heading("Architecture", sub=True), Text(words), Strips(strips[:1] if same else strips)]
        if strips
        else []
    )


def pieces_of(stage: StageBlocks) -> tuple[tuple[str, State], ...]:
    """Blocks of a stage as they run, with those that are gone where they were."""
    states: dict[str, State] = {}
    groups: tuple[tuple[State, tuple[str, ...]], ...] = (
        ("kept", stage.kept), ("copied", stage.copied), ("removed", stage.removed),
    )  # fmt: skip
    for state, names in groups:
        states |= dict.fromkeys(names, state)
    return tuple((name, states[name]) for name in sorted(states, key=_place))


def _place(block: str) -> tuple[int, int, str]:
    """ResNet i runs before attention i, and a copy right after its original."""
    parts = block.split(".")
    kind = next(place for place, part in enumerate(parts) if part in ("resnets", "attentions"))
    copy = ".".join(parts[kind + 2 :])
    return int(parts[kind + 1]), int(parts[kind] == "attentions"), copy
