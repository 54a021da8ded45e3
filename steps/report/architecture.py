"""The report's part on the UNet's architecture: what it is made of, and how it came to be."""

from artifacts_schema.architecture import EvolutionRecord
from steps.report import charts
from steps.report.content import Block, Chart, Heading, Table, Text


def architecture(evolution: EvolutionRecord | None) -> list[Block]:
    """The blocks, in reading order; none where nothing was pruned."""
    if evolution is None:
        return []
    rows = tuple(
        (
            stage.stage,
            str(len(stage.kept) + len(stage.removed)),
            str(len(stage.blocks)),
            ", ".join(stage.removed) or "-",
            ", ".join(stage.copied) or "-",
        )
        for stage in evolution.architecture.stages
    )
    layout = Table(("stage", "blocks before", "after", "removed", "copies"), rows)
    if evolution.latency_budget is None:
        words = (
            f"Given, not searched: {evolution.architecture.name}. It takes {evolution.predicted_ratio:.1%} of the base's guided "
            f"step ({evolution.latency_unit})."
        )
        return [Heading("Architecture"), Text(words), layout]
    return [Heading("Architecture"), *_search(evolution, layout)]


def _search(evolution: EvolutionRecord, layout: Table) -> list[Block]:
    """Budget, rounds and probes of one that was searched."""
    actions = tuple(
        (
            str(item.index + 1),
            action.kind,
            action.target,
            f"{action.value:.3g}",
            f"{action.predicted_after / evolution.base_latency:.1%}",
        )
        for item in evolution.rounds
        for action in item.actions
    )
    blocks: list[Block] = [
        Text(
            f"Budget {evolution.latency_budget:.0%} of the base's guided step "
            f"({evolution.latency_unit}); reached "
            f"{evolution.predicted_ratio:.1%}."
        ),
        layout,
        Table(
            (
                "round",
                "action",
                "unit",
                f"CLIP lost at most, per {evolution.latency_unit} saved",
                "latency after",
            ),
            actions,
        ),
        Chart(charts.evolution_path(evolution), "Predicted latency after every action; dashed: the budget."),
    ]
    if evolution.rounds and evolution.rounds[0].scores:
        blocks.append(
            Chart(
                charts.unit_scores(evolution),
                "First round: CLIP score lost without each unit, ± one standard error; the captions are one per picture group.",
            )
        )
    return blocks
