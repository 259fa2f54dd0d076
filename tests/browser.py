"""A page in headless Chromium, driven over a pair of pipes with the DevTools protocol: standard library only.

The browser gets a new, empty profile. What the page asks for and what it complains of is kept, so that a test can
say that there was nothing.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 60.0  # seconds for one answer of a browser on a busy machine


class Page:
    """One tab. `requests`: every address it asked for; `complaints`: console messages, exceptions, log entries."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = set[str]()  # what was navigated to and has finished loading
        self._to, self._from, self._rest, self._number, self._session = to_browser, from_browser, b"", 0, ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Page.setLifecycleEventsEnabled", enabled=True)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window inside, in CSS pixels (a phone's below 500), and the colour scheme asked for."""
        mobile = width < 500
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Load `address` and wait until it and all it asks for is there."""
        told = self._ask("Page.navigate", url=address)
        assert "errorText" not in told, f"{address}: {told['errorText']}"
        deadline = time.monotonic() + _PATIENCE
        while told["loaderId"] not in self._loaded:  # the empty page before it may just now have finished, too
            assert time.monotonic() < deadline, f"{address} does not finish loading"
            self._take(self._message())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        told = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of the window, or of the whole page."""
        told = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))
        return path

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._take(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def _take(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Page.lifecycleEvent" and told["name"] == "load":
            self._loaded.add(told["loaderId"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(told["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(str(told["entry"]["text"]))


@contextmanager
def page() -> Iterator[Page]:
    """A new browser with one tab; it ends with the block."""
    assert CHROMIUM, "no chromium is installed"
    (browser_in, to_browser), (from_browser, browser_out) = os.pipe(), os.pipe()
    # The browser wants descriptors 3 and 4; numbers out of the way of these are handed to the shell that sets them.
    high_in, high_out = (fcntl.fcntl(one, fcntl.F_DUPFD, 20) for one in (browser_in, browser_out))
    for one in (browser_in, browser_out):
        os.close(one)
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        command = ["bash", "-c", f'exec "$@" 3<&{high_in} 4>&{high_out}', "bash", CHROMIUM, *_FLAGS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"], pass_fds=(high_in, high_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(high_in)
        os.close(high_out)
        watch = threading.Timer(4 * _PATIENCE, process.kill)  # a browser that hangs ends the test, not the suite
        watch.start()
        try:
            yield Page(to_browser, from_browser)
        finally:
            watch.cancel()
            process.terminate()
            try:
                process.wait(_PATIENCE)
            finally:
                process.kill()
                os.close(to_browser)
                os.close(from_browser)
