"""The page to try a student: what it refuses before it is there, and one visit in a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.commands.demo import build_parser, check_port, from_folders, from_store, main
from steps.files.errors import SnapFusionError
from steps.store import LocalStore
from tests.conftest import free_port
from tests.students import micro_student

ROOT = Path(__file__).parents[3]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on loopback that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_said_so(taken: int, host: str) -> None:
    with pytest.raises(
        SnapFusionError, match=f"cannot listen on {host} port {taken} .*choose another with --port"
    ):
        check_port(host, taken)


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(SnapFusionError, match="port 70000"):
        check_port("127.0.0.1", 70000)


def test_a_folder_that_is_no_student_is_refused_before_the_page_is_there(tmp_path: Path) -> None:
    with pytest.raises(SnapFusionError, match="expected the folder of a student"):
        from_folders(build_parser().parse_args(["--student", str(tmp_path)]))


def test_a_store_without_runs_has_nothing_to_show(tmp_path: Path) -> None:
    assert not from_store(LocalStore(tmp_path))


def test_without_gradio_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.commands.demo.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert main() == 1
    assert "pip install 'snapfusion-pipeline[demo]'" in capsys.readouterr().err


def demo_environment(folder: Path) -> Path:
    """An environment with what the project needs and its extra `demo`; its Python."""
    uv = shutil.which(
        "uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    )
    assert uv, "expected uv beside this Python, found none: `make install` puts it there"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    (folder / "wanted.txt").write_text("\n".join(wanted))
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (folder / "pins.txt").write_text("\n".join(pin for pin in pins if not pin.startswith("pillow==")))
    python = folder / "environment" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(python.parents[1])], check=True)
    install = [
        uv, "pip", "install", "--quiet", "--link-mode", "symlink", "--python", str(python),
        "--requirements", str(folder / "wanted.txt"), "--constraints", str(folder / "pins.txt"),
    ]  # fmt: skip
    if subprocess.run([*install, "--offline"], capture_output=True, check=False).returncode:
        subprocess.run(install, check=True)
    return python


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """Address of the page with a micro student and its base, in an environment that has Gradio."""
    student = micro_student(tmp_path)
    port = free_port()
    process = subprocess.Popen(
        [
            str(demo_environment(tmp_path)), "-m", "flows.commands.demo", "--port", str(port),
            "--student", str(student.folder), "--base", str(student.base.path),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SNAPFUSION_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        address = process.stdout.readline().split()[0]
        assert address == f"http://127.0.0.1:{port}"
        yield address
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromium-driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.mark.long
def test_typing_and_clicking_draws_two_pictures(page: str, browser: Any) -> None:
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def find(place: str) -> Any:
        return browser.find_element(By.CSS_SELECTOR, place)

    def message() -> str:
        return str(find("#message textarea, #message input").get_property("value"))

    def opened(_: Any) -> Any:
        try:
            browser.get(page)
        except WebDriverException:  # nobody listens yet
            return None
        return browser.find_elements(By.CSS_SELECTOR, "#prompt")

    wait = WebDriverWait(browser, 120)
    wait.until(opened)
    prompt = wait.until(lambda _: find("#prompt textarea, #prompt input"))
    find("#draw").click()
    wait.until(lambda _: message())
    assert message() == "Type a prompt first: what shall be drawn?"
    prompt.send_keys("<b>red</b> flag")
    find("#draw").click()
    wait.until(lambda _: "times as quick" in message())
    wait.until(lambda _: find("#base img").get_property("naturalWidth"))
    widths = [find(f"#{name} img").get_property("naturalWidth") for name in ("base", "student")]
    assert widths == [384, 384]
    assert message().startswith("base: 50 steps, ") and "student: 8 steps, " in message()
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert not [address for address in asked if not address.startswith((page, "data:", "blob:"))]
