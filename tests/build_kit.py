"""A package index on this machine, in this process, and wheels made by hand: what tests of builds share."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(
    name: str, files: Mapping[str, bytes | str] | None = None, *, version: str = "1.0", requires: str = "", **modes: int
) -> bytes:
    """A wheel of `files`. requires: of its metadata. modes: file -> mode in the archive (a link is 0o120777)."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    every: dict[str, bytes | str] = {
        **(files if files is not None else {f"{name}.py": "VALUE = 7\n"}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": WHEEL,
    }
    every.setdefault(f"{info}/RECORD", "")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in every.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = modes.get(Path(path).stem, 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return stream.getvalue()


class PackageIndex:
    """Projects with files, served as a simple index. asked: every request's path and headers."""

    def __init__(self, url: str) -> None:
        self.root = url
        self.url = f"{url}/simple"
        self.files: dict[str, bytes] = {}
        self.pages: dict[str, tuple[str, bytes]] = {}  # project -> content type, page: instead of the one made here
        self.moved: dict[str, str] = {}  # path -> where it redirects to
        self.failing: dict[str, int] = {}  # path -> HTTP status
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    def add(self, content: bytes, name: str, *, project: str = "", more: str = "") -> str:
        """Offer a file; its URL's path. more: of its link's attributes."""
        self.files[f"/packages/{name}"] = content
        project = project or name.partition("-")[0].replace("_", "-")
        digest = hashlib.sha256(content).hexdigest()
        link = f'<a href="../../packages/{name}#sha256={digest}" {more}>{name}</a>'
        kind, page = self.pages.get(project, ("text/html", b""))
        self.pages[project] = kind, page + link.encode()
        return f"/packages/{name}"

    def add_wheel(self, name: str, files: Mapping[str, bytes | str] | None = None, *, version: str = "1.0",
                  requires: str = "", **modes: int) -> str:  # fmt: skip
        """Offer a wheel of `files`."""
        content = wheel(name, files, version=version, requires=requires, **modes)
        return self.add(content, f"{name}-{version}-py3-none-any.whl")

    def add_json(self, project: str, files: list[object]) -> None:
        """Answer with a page in JSON."""
        page = json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": files}).encode()
        self.pages[project] = "application/vnd.pypi.simple.v1+json", page

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type (or, for a redirect, its target) and content."""
        if path in self.failing:
            return self.failing[path], "text/plain", b"failed"
        if path in self.moved:
            return 302, self.moved[path], b""
        if path in self.files:
            return 200, "application/octet-stream", self.files[path]
        project = path.removeprefix("/simple/").strip("/")
        if path.startswith("/simple/") and project in self.pages:
            return 200, *self.pages[project]
        return 404, "text/plain", b"absent"


@contextmanager
def package_index() -> Iterator[PackageIndex]:
    """A running index on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            index.asked.append((self.path, dict(self.headers)))
            status, kind, content = index.answer(self.path)
            self.send_response(status)
            self.send_header("Location" if status == 302 else "Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        index = PackageIndex(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()


def configured(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """pip is configured for `settings` (`index_url`) alone, whatever this machine has."""
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "CERT", "TRUSTED_HOST", "PROXY"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name.upper()}", value)
