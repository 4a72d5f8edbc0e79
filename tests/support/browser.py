"""A real headless Chromium, driven through chromedriver's W3C WebDriver interface.

Endpoints as in https://www.w3.org/TR/webdriver2/; the console is read through Chromium's own log endpoint.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-default-apps",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # whoever asks another machine gets nothing
)


class Browser:
    """One session of a browser."""

    def __init__(self, address: str, session: str) -> None:
        self._http = requests.Session()
        self._http.trust_env = False
        self._base = f"{address}/session/{session}"

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Send one command; returns its value."""
        # Chromedriver wants a body for every POST, even an empty one.
        sent = {"json": body} if method == "POST" else {}
        answer = self._http.request(method, self._base + path, timeout=30, **sent).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{path}: {answer['error']}: {answer['message'].splitlines()[0]}")
        return answer

    def open(self, page: Path | str, fragment: str = "") -> None:
        """Open a file or an address, forgetting what the console said before."""
        self.ask("POST", "/url", url="about:blank")
        self.messages()
        self.requests()
        address = page if isinstance(page, str) else page.as_uri()
        self.ask("POST", "/url", url=address + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; returns what it returns."""
        return self.ask("POST", "/execute/sync", script=script, args=list(arguments))

    def find(self, selector: str) -> str:
        """Return the element of a CSS selector."""
        return self.ask("POST", "/element", using="css selector", value=selector)[_ELEMENT]

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a hand does."""
        self.ask("POST", f"/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Type into an element what replaces its text."""
        element = self.find(selector)
        self.ask("POST", f"/element/{element}/clear")
        if text:
            self.ask("POST", f"/element/{element}/value", text=text)

    def press(self, key: str) -> None:
        """Press a key where the focus is; ``key`` as WebDriver writes it."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.ask("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])

    def clipboard(self) -> str:
        """Text that was copied."""
        self.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        return str(self.run("return navigator.clipboard.readText()"))

    def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        target = {_ELEMENT: self.find(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": target}
        self.ask("POST", "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def text(self, selector: str) -> str:
        """Text of an element as a reader sees it."""
        return str(self.ask("GET", f"/element/{self.find(selector)}/text"))

    def size(self, width: int, height: int) -> None:
        """Give the page this size, in CSS pixels."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def dark(self, dark: bool) -> None:
        """Have the system prefer dark pages, or light ones."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[feature])

    def without_scripts(self, off: bool = True) -> None:
        """Switch JavaScript off for pages that are opened from now on."""
        self.cdp("Emulation.setScriptExecutionDisabled", value=off)

    def cdp(self, command: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.ask("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def messages(self) -> list[str]:
        """What the console said since the last call, from warnings upwards."""
        said = self.ask("POST", "/se/log", type="browser")
        return [one["message"] for one in said if one["level"] in {"WARNING", "SEVERE"}]

    def requests(self) -> list[str]:
        """URLs the browser asked for since the last call."""
        found = []
        for line in self.ask("POST", "/se/log", type="performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("about:", "data:"))]


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser with a profile of its own; skips the test where none is installed."""
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium chromium-driver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ckptkit-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        address = f"http://127.0.0.1:{port}"
        try:
            session = _session(address, binary, profile)
            try:
                yield Browser(address, session)
            finally:
                _asking().delete(f"{address}/session/{session}", timeout=30)
        finally:
            process.terminate()
            process.wait(10)


def _asking() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def _session(address: str, binary: str, profile: str) -> str:
    chrome = {"binary": binary, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
    wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
    end = time.monotonic() + 20
    while True:
        try:
            answer = (
                _asking()
                .post(f"{address}/session", json={"capabilities": {"alwaysMatch": wanted}}, timeout=60)
                .json()["value"]
            )
        except requests.ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
            continue
        assert "sessionId" in answer, answer
        return str(answer["sessionId"])
