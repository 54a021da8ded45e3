"""`snapfusion doctor`: what it finds, what it says to do, how it ends."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.run_configs import StoreConfig
from flows import costs, health
from flows.commands import doctor
from flows.health import Finding
from tests.conftest import free_port

USER = {"METAFLOW_USER": "dev"}


def found(
    environment: Mapping[str, str], store: StoreConfig | None = None, config: SnapFusionConfig | None = None
) -> list[Finding]:
    """What is wrong or notable."""
    whole = config or SnapFusionConfig(store=store or StoreConfig())
    return [item for item in health.findings(whole, environment) if item.state != "ok"]


@pytest.mark.parametrize(
    ("environment", "state", "said", "mend"),
    [
        ({"METAFLOW_USER": "root"}, "broken", "Metaflow refuses root", "export METAFLOW_USER"),
        (
            USER | {"METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_HOME": "/dev/null"},
            "broken", "METAFLOW_DATASTORE_SYSROOT_S3 is not set", "export METAFLOW_DATASTORE_SYSROOT_S3",
        ),
        (USER | {"METAFLOW_CARD_LOCALROOT": "/x"}, "note", "cards do not follow it", "unset METAFLOW_CARD_LOCALROOT"),
        (USER | {"METAFLOW_DEFAULT_METADATA": "service"}, "broken", "METAFLOW_SERVICE_URL is not set", "start it"),
        (USER | {"AWS_ENDPOINT_URL": "gopher:"}, "note", "every service of AWS", "export AWS_ENDPOINT_URL_S3"),
        (USER | {"AWS_ENDPOINT_URL_S3": "gopher:"}, "broken", "no http(s) address", "snapfusion s3-server"),
    ],
)  # fmt: skip
def test_a_setting_that_bites_is_named_with_what_mends_it(
    environment: dict[str, str], state: str, said: str, mend: str
) -> None:
    assert [
        item
        for item in found(environment)
        if item.state == state and said in item.found and mend in item.mend
    ]


def test_a_server_that_does_not_answer_is_named() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    (item,) = [item for item in found(USER | {"AWS_ENDPOINT_URL_S3": address}) if item.what == "endpoints"]
    assert item.state == "broken" and address in item.found and "nobody answers" in item.found


def test_store_and_metaflow_that_ask_unlike_servers_are_told_apart() -> None:
    both = USER | {"METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": "s3://b/m"}
    config = StoreConfig(root="s3://b/p", endpoint="http://127.0.0.1:9")
    items = list(health._endpoints(config, both))
    assert items[0].found == "the store asks http://127.0.0.1:9, Metaflow Amazon"
    assert items[0].mend == "`export METAFLOW_S3_ENDPOINT_URL=http://127.0.0.1:9`"


def test_a_store_that_cannot_be_read_is_broken(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "layout.json").write_text('{"version": 99}')
    (item,) = [
        item for item in found(USER, StoreConfig(root=str(tmp_path / "store"))) if item.what == "store"
    ]
    assert item.state == "broken" and "layout version 99" in item.found


def test_a_store_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert not [
        item for item in found(USER, StoreConfig(root=str(tmp_path / "store"))) if item.what == "store"
    ]
    assert not (tmp_path / "store").exists()


def test_a_package_of_another_version_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy<1", "pytest>=1", "nonesuch>=3", 'shtab>=1; extra == "demo"', 'nobody; extra == "demo"']
    monkeypatch.setattr(health, "requires", lambda _: wanted)
    broken, extra = health._packages()
    assert (
        "numpy<1: " in broken.found
        and "nonesuch>=3: missing" in broken.found
        and "pytest" not in broken.found
    )
    assert "'numpy<1' 'nonesuch>=3'" in broken.mend
    assert (extra.what, extra.state) == ("extra demo", "note") and "nobody" in extra.found


def test_a_containers_limit_counts_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(health, "_CGROUP", limit)
    whole = health.memory_bytes()
    limit.write_text("max\n")
    assert health.memory_bytes() == whole
    limit.write_text("1073741824\n")
    assert health.memory_bytes() == 1 << 30
    assert [item.what for item in found(USER) if item.what == "memory"] == ["memory"]


COSTS: dict[str, float] = {
    "unet_forward_s": 0.01, "decoder_forward_s": 0.01, "unet_activation_bytes": 1e6, "decoder_activation_bytes": 1e6,
    "unet_parameters": 1e6, "decoder_parameters": 1e6, "units": 10.0,
}  # fmt: skip


def measured() -> costs.Measured:
    """As though the included model had been measured, and Stable Diffusion scaled."""
    known = {
        costs.INCLUDED: COSTS,
        "micro": COSTS,
        "": costs.SD15 | {"unet_forward_s": 1.0, "decoder_forward_s": 1.0},
    }
    lines = tuple(
        costs._cost(name, costs.parse_config(costs.read_source(name)), known) for name in costs.presets()
    )
    return costs.Measured("cpu", 8 << 30, lines)


def test_every_preset_has_an_estimate_and_says_what_it_rests_on() -> None:
    lines = {item.preset: item for item in measured().presets}
    assert lines["smoke"].seconds < lines["openmoji"].seconds < lines["openmoji_full"].seconds
    assert lines["openmoji"].basis == "measured" and not lines["openmoji"].missing
    sd = lines["sd15_1gpu"]
    assert (sd.basis, sd.missing) == ("scaled", "models/stable-diffusion-v1-5")
    assert sd.memory_bytes > 6 * 4 * 859e6  # weights, gradients, moments, average, best state
    assert sd.disk_bytes > 200 * 10**9


def test_doctor_prints_and_ends_by_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [Finding("disk", "note", "little", "free some")]
    monkeypatch.setattr(doctor, "findings", lambda *_: items)
    monkeypatch.setattr(doctor, "preset_costs", measured)
    assert doctor.main(["--price", "2"]) == 0
    page = capsys.readouterr().out
    assert "-> free some" in page and "broken: nothing" in page
    assert "needs a base in models/stable-diffusion-v1-5" in page and "can run" in page and "cost" in page
    items.append(Finding("store", "broken", "no", "yes"))
    assert doctor.main(["--quick", "--json"]) == 1
    payload = json.loads(capsys.readouterr().out)
    assert payload["findings"][1] == {"what": "store", "state": "broken", "found": "no", "mend": "yes"}
    assert payload["measured"] is None
