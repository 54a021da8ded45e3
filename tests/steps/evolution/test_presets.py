"""The presets for Stable Diffusion can reach their own latency budget, and have a choice on the way."""

from pathlib import Path

import pytest

from artifacts_schema.config import load_config_file
from artifacts_schema.latency import LatencyTable
from steps.evolution.actions import Budget, check_reachable
from steps.evolution.rule import best_saving
from steps.latency.table import predict
from steps.unet.architecture import named_spec
from steps.unet.blocks import SD15_UNET_CONFIG, full_spec
from tests.steps.evolution.sd15_tables import STORED, like, mac_table, stored_table

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
BASE = full_spec(SD15_UNET_CONFIG)


@pytest.fixture(scope="module")
def tables() -> dict[str, LatencyTable]:
    return {"macs": mac_table()} | {name: stored_table(name) for name in STORED}


@pytest.mark.parametrize("name", ["macs", *STORED])
@pytest.mark.parametrize("preset", ["sd15", "sd15_1gpu"])
def test_a_preset_reaches_its_budget_with_room_to_choose(
    tables: dict[str, LatencyTable], preset: str, name: str
) -> None:
    config = load_config_file(CONFIGS / f"{preset}.toml").architecture_evolution
    check_reachable(tables[name], SD15_UNET_CONFIG, config)
    budget = Budget.of(tables[name], SD15_UNET_CONFIG, config.latency_budget)
    allowed = config.rounds * config.actions_per_round
    whole, removals = budget.predict(BASE), budget.removals(BASE)
    best = [whole - best_saving(removals, count) for count in range(allowed + 1)]
    fewest = next(count for count in range(allowed + 1) if best[count] <= budget.limit)
    assert allowed >= 1.5 * fewest
    assert best[allowed] <= 0.75 * budget.limit


def test_the_papers_unet_costs_what_the_paper_says(tables: dict[str, LatencyTable]) -> None:
    """P: 26.2 of 51.2 ms on the A100, 230 of 1,700 ms on the iPhone; in MACs it saves much less."""
    spec = named_spec("snapfusion-sd15", SD15_UNET_CONFIG)
    share = {name: predict(table, spec) / predict(table, BASE) for name, table in tables.items()}
    assert share == pytest.approx({"macs": 0.758, "gpu": 26.2 / 51.2, "phone": 230 / 1700}, abs=0.06)


@pytest.mark.parametrize("name", list(STORED))
def test_stored_tables_are_made_as_they_say(tables: dict[str, LatencyTable], name: str) -> None:
    made = like(name, tables["macs"])
    assert {key: row.cost for key, row in made.rows.items()} == pytest.approx(
        {key: row.cost for key, row in tables[name].rows.items()}
    )
