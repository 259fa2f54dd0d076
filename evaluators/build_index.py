"""The package index as a build sees it: pages and files by two kinds of path, fetched by the host, nothing else.

The one decision: a build asks for a project's page, and then for files that this page named to it; there is no way to
ask for a URL. Wheels only, but for packages whose source distributions the operator lets in. Everything is counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from evaluators.index_fetch import Absent, Fetched, Fetcher, FetchFailed, FetchRefused
from evaluators.index_pages import ACCEPTED, SOURCES, WHEEL, File, normalized, read_page, write_page
from evaluators.package_sources import Sources, without_credentials
from evaluators.sandbox.build_jail import BuildStopped
from evaluators.sandbox.build_wire import Answer

_PAGE_BYTES = 32 << 20
_METADATA_BYTES = 8 << 20
_MOST_REQUESTS = 10_000
_HTML, _BINARY = "text/html", "application/octet-stream"


class Index:
    """For one build. most_bytes: of all files together. sources_of: projects whose source distributions are shown, None
    = of all. note: told, in words, what a reader of the build's log should know. check: raises to give up."""

    def __init__(
        self,
        sources: Sources,
        *,
        most_bytes: int,
        sources_of: Collection[str] | None = (),
        note: Callable[[str], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._sources, self._left, self._note = sources, most_bytes, note
        self._sources_of = None if sources_of is None else {normalized(name) for name in sources_of}
        self._fetcher = Fetcher(sources, check=check)
        self._pages: dict[str, dict[str, File]] = {}
        self._lists: dict[str, tuple[bytes, str, str]] = {}
        self._requests = 0
        self.failed = ""  # what could not be had of the index, and why
        self.only_sources: dict[str, int] = {}  # project -> source distributions that were not shown, where no wheel is

    def answer(self, path: str) -> Answer:
        """To one GET; never raises for what is asked, nor for what the index answers."""
        self._requests += 1
        if self._requests > _MOST_REQUESTS:
            return _said(429, "too many requests")
        match path.split("/"):
            case ["", "simple", name, ""]:
                return self._page(name)
            case ["", "files", name, file]:
                return self._file(name, unquote(file))
        self._note(f"asked for {path[:200]!r}, which is neither a project's page nor a file of one: refused")
        return _said(404, "no such path")

    def close(self) -> None:
        """End every connection."""
        self._fetcher.close()

    def _page(self, name: str) -> Answer:
        try:
            project = normalized(name)
        except ValueError as error:
            return _said(404, str(error))
        if project not in self._pages:
            found = self._collected(project)
            if found is None:
                return _said(502, self.failed)
            self._pages[project] = found
        files = self._pages[project]
        if not files:
            return _said(404, "no such project")
        content = write_page(project, files.values())
        return Answer(200, _HTML, len(content), iter((content,)))

    def _collected(self, project: str) -> dict[str, File] | None:
        """What all sources have of a project; None where none could be asked, and one could not."""
        found: dict[str, File] = {}
        failed, hidden = False, 0
        for source in self._places(project):
            try:
                files = self._listed(source, project)
            except Absent:
                continue
            except (FetchFailed, FetchRefused, ValueError) as error:
                self._fail(f"the package index cannot be read: {error}")
                failed = True
                continue
            for file in files:
                if file.is_wheel or self._sources_of is None or project in self._sources_of:
                    found.setdefault(file.name, file)
                else:
                    hidden += 1
        if hidden and not any(file.is_wheel for file in found.values()):
            self.only_sources[project] = hidden
            self._note(f"{project}: the index has {hidden} source distributions and no wheel; wheels only are taken")
        return None if failed and not found else found

    def _places(self, project: str) -> list[str]:
        """The URLs of pages that may list a project."""
        return [*(f"{index}/{project}/" for index in self._sources.indexes), *self._sources.links]

    def _listed(self, url: str, project: str) -> list[File]:
        parts = urlsplit(url)
        if parts.scheme == "file" and url in self._sources.links and Path(unquote(parts.path)).is_dir():
            return _in_folder(Path(unquote(parts.path)), project)
        page = self._read(url)
        local = urlsplit(page[2]).scheme == "file"
        files = read_page(*page, project)
        return [kept for file in files if (kept := self._fetchable(file, project, local)) is not None]

    def _read(self, url: str) -> tuple[bytes, str, str]:
        """A page: its content, its type, its URL after redirects. Pages that list every project are kept."""
        if url in self._lists:
            return self._lists[url]
        fetched = self._fetcher.get(url, most=_PAGE_BYTES, accept=ACCEPTED)
        page = b"".join(fetched.parts), fetched.kind, fetched.url
        if url in self._sources.links:
            self._lists[url] = page
        return page

    def _fetchable(self, file: File, project: str, local: bool) -> File | None:
        """The file, if its URL is one that may be asked. local: a page of this machine names it."""
        try:
            if not local and urlsplit(file.url).scheme == "file":
                raise FetchRefused("only a page of this machine may lead to its files")
            self._fetcher.check_url(file.url)
        except FetchRefused as error:
            self._note(f"{project}: {file.name} is left out: {error}")
            return None
        return replace(file, url=without_credentials(file.url))

    def _file(self, project: str, name: str) -> Answer:
        only_metadata = name.endswith(f"{WHEEL}.metadata")
        file = self._pages.get(project, {}).get(name.removesuffix(".metadata") if only_metadata else name)
        if file is None or (only_metadata and file.metadata is None):
            self._note(f"asked for the file {name[:200]!r} of {project[:100]!r}, which no page named: refused")
            return _said(404, "no such file")
        url = urljoin(file.url, urlsplit(file.url).path + ".metadata") if only_metadata else file.url
        try:
            fetched = self._fetcher.get(url, most=min(_METADATA_BYTES, self._left) if only_metadata else self._left)
        except (FetchFailed, FetchRefused) as error:
            self._fail(f"{name} cannot be fetched: {error}")
            return _said(404 if isinstance(error, Absent) else 502, str(error))
        expected = (file.metadata or "") if only_metadata else file.hash
        return Answer(200, _BINARY, fetched.length, self._counted(fetched, expected, name))

    def _counted(self, fetched: Fetched, expected: str, name: str) -> Iterator[bytes]:
        algorithm, _, wanted = expected.partition("=")
        digest = hashlib.new(algorithm) if wanted else None
        held = b""
        try:
            for part in fetched.parts:
                self._left -= len(part)
                if digest is not None:
                    digest.update(part)
                if held:
                    yield held
                held = part  # the last part waits for the hash
            if self._left < 0:
                raise BuildStopped("fetching the packages takes more bytes than a build may")
            if digest is not None and digest.hexdigest() != wanted:
                raise FetchFailed("it does not match the hash that the index gives for it")
        except FetchFailed as error:
            self._fail(f"{name} cannot be fetched: {error}")
            raise
        yield held

    def _fail(self, words: str) -> None:
        self.failed = words
        self._note(words)


def _in_folder(folder: Path, project: str) -> list[File]:
    """The packages of a project that lie in a folder of this machine."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith((WHEEL, *SOURCES)) and path.is_file())
    links = "".join(f'<a href="{name}"></a>' for name in names if not set(name) & set('"<>&#?%'))
    return read_page(links.encode(), _HTML, folder.as_uri() + "/", project)


def _said(status: int, words: str) -> Answer:
    content = words.encode("utf-8", "replace")[:1000]
    return Answer(status, "text/plain", len(content), iter((content,)))
