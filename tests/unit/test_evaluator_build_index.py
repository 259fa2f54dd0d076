"""The package index as a build sees it: only pages, and files that pages named; only where the operator's index is."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest
from pip._internal.models.index import PyPI

from evaluators.address_nature import nature
from evaluators.build_index import Index
from evaluators.index_fetch import Fetcher, FetchFailed, FetchRefused
from evaluators.index_pages import File, normalized, read_page, write_page
from evaluators.package_sources import Sources, SourcesRefused, read_sources
from evaluators.sandbox.build_jail import BuildStopped
from tests.build_kit import PackageIndex, package_index, wheel

CONTENT = wheel("planted")
NAME = "planted-1.0-py3-none-any.whl"


@pytest.fixture
def served() -> Iterator[PackageIndex]:
    with package_index() as found:
        yield found


OPENED: list[Index] = []


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever becomes of a test, its connections end with it; none goes through a proxy of this machine."""
    monkeypatch.setenv("NO_PROXY", "*")
    yield
    while OPENED:
        OPENED.pop().close()


def seen(sources: Sources, *, most_bytes: int = 1 << 20, **options: object) -> tuple[Index, list[str]]:
    """An index as a build sees it, and its notes."""
    notes: list[str] = []
    OPENED.append(Index(sources, most_bytes=most_bytes, note=notes.append, **options))  # type: ignore[arg-type]
    return OPENED[-1], notes


def got(index: Index, path: str) -> tuple[int, bytes]:
    answer = index.answer(path)
    return answer.status, b"".join(answer.parts)


def test_a_page_is_written_anew_and_its_files_are_served(served: PackageIndex) -> None:
    served.add(CONTENT, NAME, more='data-requires-python="&gt;=3.8" onclick="x"')
    served.add(b"source", "planted-1.0.tar.gz")
    served.add(b"other", "other-1.0-py3-none-any.whl", project="planted")
    index, notes = seen(Sources((served.url,)))
    status, page = got(index, "/simple/planted/")
    assert status == 200
    assert page.count(b"<a ") == 1  # no source distribution, nothing of another project
    assert b'href="/files/planted/planted-1.0-py3-none-any.whl#sha256=' in page
    assert b'data-requires-python="&gt;=3.8"' in page and b"onclick" not in page
    assert got(index, f"/files/planted/{NAME}") == (200, CONTENT)
    assert (index.failed, notes) == ("", [])


@pytest.mark.parametrize(
    "path",
    ["/", "/simple/", "/simple", "/simple/absent/", "/simple/../x/", "/files/planted/other.whl", f"/packages/{NAME}",
     "/files/planted/..%2f..%2fetc%2fpasswd", "//169.254.169.254/latest", "http://169.254.169.254/", "/etc/passwd",
     f"/files/planted/{NAME}.metadata", f"/files/other/{NAME}"],
)  # fmt: skip
def test_no_other_path_is_answered_nor_asked(served: PackageIndex, path: str) -> None:
    served.add(CONTENT, NAME)
    index, _ = seen(Sources((served.url,)))
    got(index, "/simple/planted/")
    assert got(index, path)[0] == 404
    assert [one for one, _ in served.asked] == ["/simple/planted/"] + (["/simple/absent/"] if "absent" in path else [])


def test_packages_without_wheels_are_named(served: PackageIndex) -> None:
    served.add(b"source", "old-2.0.tar.gz")
    index, notes = seen(Sources((served.url,)))
    assert got(index, "/simple/old/")[0] == 404
    assert index.only_sources == {"old": 1}
    assert notes == ["old: the index has 1 source distributions and no wheel; wheels only are taken"]
    allowed, _ = seen(Sources((served.url,)), sources_of=("Old",))
    assert b"old-2.0.tar.gz" in got(allowed, "/simple/old/")[1]


def test_sources_are_merged_and_one_that_fails_is_told(served: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    (tmp_path / "planted-2.0-py3-none-any.whl.part").write_bytes(b"")
    served.failing["/simple/planted/"] = 403
    index, notes = seen(Sources((served.url,), links=(tmp_path.as_uri(),)))
    assert got(index, "/simple/planted/")[1].count(b"<a ") == 1
    assert got(index, f"/files/planted/{NAME}") == (200, CONTENT)
    assert "HTTP 403: it asks for credentials" in notes[0]
    served.failing["/simple/other/"] = 403
    assert got(index, "/simple/other/")[0] == 502
    assert index.failed.startswith("the package index cannot be read")


def test_no_page_of_a_network_leads_to_files_of_this_machine(served: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / "linked-1.0-py3-none-any.whl").write_bytes(b"local")
    target = (tmp_path / "linked-1.0-py3-none-any.whl").as_uri()
    served.pages["linked"] = "text/html", f'<a href="{target}"></a>'.encode()
    served.moved["/simple/moved/"] = target
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    index, notes = seen(Sources((served.url,), links=(elsewhere.as_uri(),)))
    assert got(index, "/simple/linked/")[0] == 404
    assert got(index, "/simple/moved/")[0] == 502
    assert len(notes) == 2 and all("of this machine may lead to its files" in one for one in notes)
    page = tmp_path / "page.html"
    page.write_text(f'<a href="{target}"></a>')
    own, _ = seen(Sources((), links=(page.as_uri(),)))
    assert got(own, "/simple/linked/")[0] == 200
    assert got(own, "/files/linked/linked-1.0-py3-none-any.whl") == (200, b"local")


def test_a_page_that_lists_all_projects_is_read_once(served: PackageIndex) -> None:
    served.add(CONTENT, NAME, project="list")
    served.pages["list"] = "text/html", served.pages["list"][1] + b'<a href="other-1.0-py3-none-any.whl"></a>'
    index, _ = seen(Sources((), links=(f"{served.url}/list/",)))
    assert b"planted-1.0" in got(index, "/simple/planted/")[1]
    assert b"other-1.0" in got(index, "/simple/other/")[1]
    assert got(index, f"/files/planted/{NAME}") == (200, CONTENT)
    assert [path for path, _ in served.asked] == ["/simple/list/", f"/packages/{NAME}"]


def test_credentials_go_to_their_index_alone(served: PackageIndex) -> None:
    served.add(CONTENT, NAME)
    with package_index() as other:
        other.add(CONTENT, NAME)
        served.moved[f"/packages/{NAME}"] = f"{other.root.replace('//', '//stolen:word@')}/packages/{NAME}"
        with_password = served.url.replace("//", "//user:pass%40word@")
        index, notes = seen(Sources((with_password, other.url)))
        assert got(index, "/simple/planted/")[0] == 200
        assert got(index, f"/files/planted/{NAME}") == (200, CONTENT)
        assert {headers.get("Authorization") for _, headers in served.asked} == {"Basic dXNlcjpwYXNzQHdvcmQ="}
        assert {headers.get("Authorization") for _, headers in other.asked} == {None}
        assert "pass" not in "".join([*notes, Sources((with_password,)).shown, *Sources((with_password,)).identity])


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:9/x", "https://127.0.0.1/x", "https://169.254.169.254/latest", "file:///etc/passwd", "ftp://h/x",
     "https://127.0.0.1:9999/x", "http://[::1]/x", "gopher://x", "https://0.0.0.0/x", "https:///x", "https://[x",
     "https://h:port/x"],
)  # fmt: skip
def test_neither_links_nor_redirects_lead_elsewhere(target: str) -> None:
    with package_index() as away, package_index() as index_of:
        # The index is at 127.0.0.1, the name `localhost` is another host to it, as is every other port.
        url = index_of.url
        target = target.replace("127.0.0.1", "127.0.0.2") if target.startswith("https") else target
        index_of.moved["/simple/moved/"] = target
        index_of.pages["linked"] = "text/html", f'<a href="{target}/linked-1.0-py3-none-any.whl"></a>'.encode()
        index, notes = seen(Sources((url,)))
        assert got(index, "/simple/moved/")[0] == 502
        page = got(index, "/simple/linked/")
        if page[0] == 200:  # its text does not tell: the address does
            assert got(index, "/files/linked/linked-1.0-py3-none-any.whl")[0] == 502
        assert notes and away.asked == []


def test_what_does_not_match_its_hash_never_arrives_whole(served: PackageIndex) -> None:
    path = served.add(CONTENT, NAME)
    served.files[path] = CONTENT[:-1] + b"!"
    index, notes = seen(Sources((served.url,)))
    got(index, "/simple/planted/")
    answer = index.answer(f"/files/planted/{NAME}")
    with pytest.raises(FetchFailed, match="does not match the hash"):
        list(answer.parts)
    assert "does not match the hash" in index.failed == notes[-1]


def test_bytes_are_bounded(served: PackageIndex) -> None:
    served.add(b"x" * 300_000, NAME)
    index, _ = seen(Sources((served.url,)), most_bytes=200_000)
    got(index, "/simple/planted/")
    assert got(index, f"/files/planted/{NAME}")[0] == 502
    assert "larger than 200,000 bytes" in index.failed
    index, _ = seen(Sources((served.url,)), most_bytes=400_000)
    got(index, "/simple/planted/")
    assert got(index, f"/files/planted/{NAME}")[0] == 200
    with pytest.raises(BuildStopped, match="more bytes than a build may"):
        for _ in range(2):
            index._left = min(index._left, 299_999)
            fetched = index._fetcher.get(f"{served.root}/packages/{NAME}", most=1 << 20)
            list(index._counted(fetched, "", NAME))


def test_pages_in_json_with_metadata_apart(served: PackageIndex) -> None:
    metadata = b"Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n"
    served.files |= {f"/packages/{NAME}": CONTENT, f"/packages/{NAME}.metadata": metadata}
    served.add_json("planted", [
        {"filename": NAME, "url": f"/packages/{NAME}", "hashes": {}, "core-metadata": True, "yanked": "<old>"},
        {"filename": "planted-2.0-py3-none-any.whl", "url": 7}, {"filename": "../planted-3.0-py3-none-any.whl"}, 5,
    ])  # fmt: skip
    index, _ = seen(Sources((served.url,)))
    page = got(index, "/simple/planted/")[1]
    assert b'data-yanked="&lt;old&gt;" data-core-metadata="true"' in page
    assert got(index, f"/files/planted/{NAME}.metadata") == (200, metadata)
    served.add_json("broken", [])
    for page in (b"{", b"[]", b"[" * 100_000, b'{"files": {}}'):
        served.pages["broken"] = (served.pages["broken"][0], page)
        assert got(index, "/simple/broken/")[0] == 502


def test_a_busy_server_is_asked_again(served: PackageIndex) -> None:
    served.failing["/simple/planted/"] = 503
    index, _ = seen(Sources((served.url,)))
    assert got(index, "/simple/planted/")[0] == 502
    assert len(served.asked) == 3


def test_an_operators_proxy_is_used(served: PackageIndex) -> None:
    served.add(CONTENT, NAME)
    passed: list[tuple[str, str | None]] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            passed.append((self.path, self.headers.get("Proxy-Authorization")))
            with urlopen(self.path) as answer:
                content = answer.read()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            index, _ = seen(Sources((served.url,), proxy=f"http://me:it@127.0.0.1:{server.server_port}"))
            assert got(index, "/simple/planted/")[0] == 200
            assert passed == [(f"{served.url}/planted/", "Basic bWU6aXQ=")]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("address", "kind"),
    [("8.8.8.8", "public"), ("2606:4700::1111", "public"), ("10.1.2.3", "private"), ("192.168.0.1", "private"),
     ("fd00::1", "private"), ("127.0.0.1", "loopback"), ("::1", "loopback"), ("169.254.169.254", "link-local"),
     ("fe80::1%2", "link-local"), ("::ffff:127.0.0.1", "loopback"), ("64:ff9b::a9fe:a9fe", "link-local"),
     ("2002:7f00:1::1", "loopback"), ("0.0.0.0", "special"), ("224.0.0.1", "special"), ("100.64.0.1", "private")],
)  # fmt: skip
def test_addresses_are_told_apart(address: str, kind: str) -> None:
    assert nature(address) == kind


def test_private_addresses_only_where_the_index_is_private() -> None:
    inside, outside = Fetcher(Sources(("https://10.1.2.3/simple",))), Fetcher(Sources(("https://8.8.8.8/simple",)))
    assert inside._addresses("10.9.9.9", 443) == ["10.9.9.9"]
    assert outside._addresses("1.1.1.1", 443) == ["1.1.1.1"]
    for fetcher, address in ((outside, "10.9.9.9"), (inside, "127.0.0.1"), (inside, "169.254.169.254")):
        with pytest.raises(FetchRefused, match="a build may not go there"):
            fetcher._addresses(address, 443)


def test_pages_and_names() -> None:
    assert normalized("Zope.Interface__x") == "zope-interface-x"
    with pytest.raises(ValueError, match="not the name of a package"):
        normalized("../x")
    page = b'<base href="https://f/"><a href="a/X_Y-1-py3-none-any.whl#sha256=zz" data-yanked></a><a href="b"></a>'
    [file] = read_page(page, "text/html", "https://i/simple/x-y/", "x-y")
    assert file == File("X_Y-1-py3-none-any.whl", "https://f/a/X_Y-1-py3-none-any.whl", yanked="")
    assert write_page("x-y", [file]).count(b"data-yanked") == 1


def test_sources_are_what_pip_is_configured_for(tmp_path: Path) -> None:
    assert read_sources(environment={"PIP_CONFIG_FILE": "/dev/null"}).indexes == (PyPI.simple_url,)
    own, limits = tmp_path / "pip.conf", tmp_path / "limits.txt"
    limits.write_text("six<2\n")
    own.write_text(
        f"[global]\nindex_url = https://u:p@i/simple/\nfind-links = {tmp_path}\n[install]\nconstraint={limits}\n"
    )
    environment = {"PIP_CONFIG_FILE": str(own), "HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path)}
    found = read_sources(environment=environment)
    assert (found.indexes[0], found.links[0]) == ("https://u:p@i/simple", tmp_path.as_uri())
    assert "six<2" in found.constraints
    assert not any("u:p" in one for one in found.identity)
    alone = read_sources("https://j/simple", environment={**environment, "PIP_EXTRA_INDEX_URL": "https://k"})
    assert (alone.indexes, alone.links) == (("https://j/simple",), ())
    both = read_sources(environment={**environment, "PIP_EXTRA_INDEX_URL": "https://k https://l"})
    assert both.indexes == ("https://u:p@i/simple", "https://k", "https://l")
    assert read_sources(environment={**environment, "PIP_NO_INDEX": "1"}).indexes == ()
    for setting, value in (("INDEX_URL", "ssh://h/x"), ("CONSTRAINT", "/absent/limits.txt")):
        with pytest.raises(SourcesRefused, match=r"ssh|absent"):
            read_sources(environment={"PIP_CONFIG_FILE": "/dev/null", f"PIP_{setting}": value})
