"""Shared fixtures; shapes in annotations are checked while tests run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

# Before the hook: what is first imported by a module under it is compiled anew in every process, 12 seconds of it.
import open_clip  # noqa: F401
import timm.models  # noqa: F401
import torchvision.models.feature_extraction  # noqa: F401
from jaxtyping import install_import_hook

_hook = install_import_hook(["clipedit.editor", "clipedit.export"], "beartype.beartype")

import jsonschema
import pytest
import torch

import clipedit
from clipedit.commands import console
from clipedit.commands.running.voice import VOICE
from clipedit.commands.tables.outputs import make_schema

# What a command prints has a schema, as have these where an option makes them another output.
_OTHERWISE = {
    "--dry-run": "dry-run",
    "--suite": "evaluate-suite",
    "--rivals": "evaluate-rivals",
    "--test": "score-test",
}


def _print_valid_json(value: Any, print_json: Callable[[Any], None] = console.print_json) -> None:
    command = "-".join(VOICE.command.split()[1:])
    name = next((other for option, other in _OTHERWISE.items() if option in sys.argv and command != "push"), command)
    # Without a command a test calls the function itself.
    if command not in ("", "schema"):
        jsonschema.validate(json.loads(json.dumps(console._replace_unsayable(value))), make_schema(name))
    print_json(value)


# Before the commands are imported: whichever test runs one in this process, what it prints is valid.
console.print_json = _print_valid_json

from clipedit import cli
from clipedit.editor.look.spatial import TokenShares, compute_token_shares, head_ids


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or written to the user's own; processes that tests start share it."""
    os.environ["CLIPEDIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a browser or fetches packages of Node is marked by what it uses: no test can forget to say it."""
    for item in items:
        used, given = getattr(item, "fixturenames", ()), getattr(item, "callspec", None)
        if "browser" in used:
            item.add_marker(pytest.mark.browser)
        if item.path.name == "test_targets.py" and given is not None and "transformers-js" in given.params.values():
            item.add_marker(pytest.mark.download)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Batches of a few images gain nothing from threads, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answer_here(_: object, asked: str) -> str:
    """What stands in for the child process of `verify`."""
    from clipedit.export.verify import verify_child

    with warnings.catch_warnings():
        # As its environment says there.
        warnings.simplefilter("ignore")
        return json.dumps(verify_child.answer_request(json.loads(asked)))


@pytest.fixture(scope="module")
def verified_here() -> Iterator[None]:
    """Exports are verified in this process: to start another takes ten seconds, and is not what is tested.

    Of a module, so that what its fixtures export is verified so too.
    """
    from clipedit.export.verify.verify import Verifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Verifier, "__enter__", lambda verifier: verifier)
        patch.setattr(Verifier, "__exit__", lambda *_: None)
        patch.setattr(Verifier, "_exchange", answer_here)
        yield


class Result(NamedTuple):
    """The exit code of a command, what it printed, and what it said on stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["clipedit", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0) if not isinstance(stop.code, str) else 1
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def demo_model() -> clipedit.Model:
    return clipedit.load_model("demo")


@pytest.fixture(scope="session")
def demo_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    from clipedit.editor.images.demo import demo_calibration_source

    return clipedit.scan(demo_model, demo_calibration_source(1024), mlps=True, workers=0)


@pytest.fixture(scope="session")
def saved(demo_scan: clipedit.Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `demo_scan`, for commands to read."""
    path = tmp_path_factory.mktemp("scan") / "scan.safetensors"
    demo_scan.save(path)
    return path


@pytest.fixture(scope="session")
def small_demo_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    """Of few images and no MLPs: for the fast tests, which ask what a scan does, not what the demo's heads hold."""
    from clipedit.editor.images.demo import demo_calibration_source

    return clipedit.scan(demo_model, demo_calibration_source(256), workers=0)


@pytest.fixture(scope="session")
def family_table() -> Iterator[dict[str, tuple[str, int, float]]]:
    """Components and relative error of the sum, one row per family; `pytest -s -k contributions` prints them."""
    rows: dict[str, tuple[str, int, float]] = {}
    yield rows
    print(f"\n{'family':42} {'tower':14} components  relative error")
    for name, (tower, count, error) in rows.items():
        print(f"{name:42} {tower:14} {count:10d}  {error:.1e}")


@pytest.fixture(scope="session")
def check_token_shares() -> Callable[[clipedit.Model, torch.Tensor], TokenShares]:
    """Over all tokens, the shares of every head towards any direction are its contribution along it, within 1e-5."""

    def check(model: clipedit.Model, pixels: torch.Tensor) -> TokenShares:
        directions = torch.randn(4, model.tower.d_embed, dtype=torch.float64)
        found = compute_token_shares(model, pixels, directions, heads=head_ids(model, range(model.tower.n_layers)))
        parts = clipedit.decompose(model, pixels)
        names = [str(identity) for identity in parts.components]
        contributions = parts.contributions[:, [names.index(str(head)) for head in found.heads]]
        for shares, expected in (
            (found.shares.sum(2).double(), contributions.double() @ directions.T),
            (found.norm, parts.embedding.norm(dim=1)),
        ):
            assert float((shares - expected).norm() / expected.norm()) < 1e-5
        rows, columns = found.grid
        assert found.on_image().shape == (len(pixels), len(found.heads), rows, columns, 4) and rows * columns > 1
        return found

    return check


# In a browser: Chromium, driven over the WebDriver protocol, which is plain JSON over HTTP.


class Browser:
    def __init__(self, port: int):
        self.root = f"http://127.0.0.1:{port}"
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
            "binary": shutil.which("chromium") or shutil.which("google-chrome"),
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:600]}") from None

    def __call__(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        return self.call(method, f"/session/{self.session}/{path}".rstrip("/"), body)

    def run(self, script: str) -> Any:
        return self("execute/sync", {"script": script, "args": []})

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})

    def click(self, selector: str) -> None:
        (element,) = self("elements", {"using": "css selector", "value": selector})
        self(f"element/{next(iter(element.values()))}/click")

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self("se/log", {"type": "performance"})]
        sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("NO PAGE WAS OPENED IN A BROWSER: install `chromium` and `chromium-driver` (Debian) to test it")
    with subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = next(int(found[1]) for line in process.stdout if (found := re.search(r"on port (\d+)\.", line)))
            opened = wait_for(lambda: Browser(port))
            yield opened
            opened("", method="DELETE")
        finally:
            process.terminate()


def wait_for(action: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
