"""A project's page of a package index: read (PEP 503 HTML, PEP 691 JSON), and written anew for a build.

The one decision: what a build sees is written by us, from a few checked fields; no byte of a foreign page goes in.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

ACCEPTED = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"  # simple index
)
WHEEL = ".whl"
SOURCES = (".tar.gz", ".zip")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}")
_HASH = re.compile(r"(sha256|sha384|sha512)=([0-9a-f]{64,128})")
_MOST_FILES = 50_000
_MOST_TEXT = 300  # of a requires-python or a reason for yanking


@dataclass(frozen=True)
class File:
    """One file of a project. hash: `sha256=...` or "". yanked: why, None = it is not. metadata: of the file that holds
    its metadata alone: its hash, "" = there is one without a hash, None = there is none."""

    name: str
    url: str
    hash: str = ""
    requires_python: str = ""
    yanked: str | None = None
    metadata: str | None = None

    @property
    def is_wheel(self) -> bool:
        """Else a source distribution."""
        return self.name.endswith(WHEEL)


def normalized(name: str) -> str:
    """A project's name as indexes spell it (PEP 503). Raises `ValueError` for what is none."""
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise ValueError(f"{name[:100]!r} is not the name of a package")
    return re.sub(r"[-_.]+", "-", name).lower()


def read_page(content: bytes, kind: str, url: str, project: str) -> list[File]:
    """The wheels and source distributions of `project` that a page lists. Raises `ValueError` for a malformed page."""
    if kind.endswith("+json") or kind == "application/json":
        found = _read_json(content, url)
    else:
        found = _read_html(content, url)
    return [file for file in found if _FILE_NAME.fullmatch(file.name) and _project_of(file.name) == project]


def write_page(project: str, files: Iterable[File]) -> bytes:
    """The page that a build gets: every file at `/files/PROJECT/NAME`."""
    lines = ['<!DOCTYPE html><html><head><meta name="pypi:repository-version" content="1.0"></head><body>']
    for file in files:
        target = f"/files/{project}/{quote(file.name)}" + (f"#{file.hash}" if file.hash else "")
        more = f' data-requires-python="{html.escape(file.requires_python)}"' if file.requires_python else ""
        if file.yanked is not None:
            more += f' data-yanked="{html.escape(file.yanked)}"'
        if file.metadata is not None:
            value = html.escape(file.metadata or "true")
            more += f' data-core-metadata="{value}" data-dist-info-metadata="{value}"'
        lines.append(f'<a href="{html.escape(target)}"{more}>{html.escape(file.name)}</a><br>')
    return "\n".join([*lines, "</body></html>"]).encode()


def _project_of(name: str) -> str:
    try:
        if name.endswith(WHEEL):
            return normalized(name.partition("-")[0])
        stem = next((name.removesuffix(one) for one in SOURCES if name.endswith(one)), "")
        return normalized(stem.rpartition("-")[0])
    except ValueError:
        return ""


def _read_json(content: bytes, url: str) -> list[File]:
    try:
        page = json.loads(content)
    except RecursionError:
        raise ValueError("a page of the index is nested too deeply") from None
    files = page.get("files") if isinstance(page, dict) else None
    if not isinstance(files, list) or len(files) > _MOST_FILES:
        raise ValueError("a page of the index is no list of files")
    return [_from_json(one, url) for one in files if isinstance(one, dict)]


def _from_json(one: dict[str, Any], url: str) -> File:
    hashes = one.get("hashes") if isinstance(one.get("hashes"), dict) else {}
    metadata = one.get("core-metadata", one.get("dist-info-metadata", False))
    yanked = one.get("yanked", False)
    return File(
        str(one.get("filename", "")),
        urldefrag(urljoin(url, str(one.get("url", ""))))[0],
        _hash_of(hashes),
        _text(one.get("requires-python")),
        None if yanked is False else _text(yanked),
        None if metadata is False else _hash_of(metadata) if isinstance(metadata, dict) else "",
    )


def _hash_of(hashes: Any) -> str:
    for algorithm in ("sha256", "sha512", "sha384"):
        if match := _HASH.fullmatch(f"{algorithm}={hashes.get(algorithm, '')}"):
            return match[0]
    return ""


def _text(value: object) -> str:
    return value[:_MOST_TEXT] if isinstance(value, str) else ""


class _Links(HTMLParser):
    """The anchors of a page, and its base."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if tag == "base" and not self.base:
            self.base = fields.get("href") or ""
        if tag == "a" and fields.get("href") and len(self.found) < _MOST_FILES:
            self.found.append(fields)


def _read_html(content: bytes, url: str) -> list[File]:
    parser = _Links()
    parser.feed(content.decode("utf-8", "replace"))
    base = urljoin(url, parser.base)
    return [_from_link(one, base) for one in parser.found]


def _from_link(fields: dict[str, str | None], base: str) -> File:
    target, fragment = urldefrag(urljoin(base, fields["href"] or ""))
    metadata = fields.get("data-core-metadata") or fields.get("data-dist-info-metadata")
    match = _HASH.search(metadata or "")
    hashed = _HASH.search(fragment)
    return File(
        unquote(urlsplit(target).path.rpartition("/")[2]),
        target,
        hashed[0] if hashed else "",
        _text(fields.get("data-requires-python")),
        _text(fields["data-yanked"] or "") if "data-yanked" in fields else None,
        None if metadata is None else match[0] if match else "",
    )
