"""Users' URLs: no spelling of a private address is asked, and the address that was checked is the one connected to."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from trainer.gateway.bucket_credentials import credentials_of
from trainer.gateway.buckets import AZURE, S3, locate, open_bucket, scheme_of
from trainer.gateway.errors import GatewayError
from trainer.gateway.fetching import Fetcher, Rules, allowed_hosts, may_connect

PUBLIC = "93.184.216.34"
NAMES = {
    "public.example": [PUBLIC], "two.example": [PUBLIC, "10.0.0.1"], "private.example": ["10.1.2.3"],
    "loop.example": ["127.0.0.1"], "six.example": ["2606:2800:220:1:248:1893:25c8:1946"], "six-loop.example": ["::1"],
    "mapped.example": ["::ffff:10.0.0.1"], "meta.example": ["169.254.169.254"], "nat.example": ["64:ff9b::a00:1"],
    "localhost": ["127.0.0.1", "::1"], "lan.example": ["192.168.7.7"], "metadata.google.internal": ["169.254.169.254"],
    "none.example": [], "a.localtest.example": ["127.0.0.1"], "link.example": ["fe80::1%eth0"],
}  # fmt: skip
REFUSED = [
    # loopback, in every spelling that some resolver takes
    "http://127.0.0.1/", "http://127.0.0.1:8787/v1/accounts", "http://127.1/", "http://127.0.1/", "http://2130706433/",
    "http://0x7f000001/", "http://0x7f.0.0.1/", "http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.01/",
    "http://127.0.0.1./", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[::]/", "http://0.0.0.0/", "http://0/",
    "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://a.localtest.example/",
    "http://loop.example/", "http://six-loop.example/", "http://127.127.127.127/", "http://[::1%25lo]/",
    "http://1\u00e12\u2460.example/", "http://\u2460\u2461\u2466.0.0.1/", "http://127\u30020\u30020\u30021/",
    # private, link-local, shared, reserved, multicast, documentation
    "http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.0.1/", "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/", "http://2852039166/", "http://0xa9fea9fe/", "http://[fd00:ec2::254]/",
    "http://[fe80::1]/", "http://[fc00::1]/", "http://[ff02::1]/", "http://224.0.0.1/", "http://255.255.255.255/",
    "http://198.18.0.1/", "http://192.0.2.1/", "http://240.0.0.1/", "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::]/", "http://168.63.129.16/",
    "http://metadata.google.internal/", "http://private.example/", "http://mapped.example/", "http://meta.example/",
    "http://two.example/", "http://nat.example/", "http://link.example/",
    # other schemes, and parsers that disagree
    "file:///etc/passwd", "gopher://127.0.0.1:70/_x", "ftp://public.example/x", "dict://127.0.0.1:11211/",
    "ldap://public.example/", "data:text/plain,x", "//127.0.0.1/", "http:127.0.0.1", "http:///127.0.0.1/", "http://",
    "http://public.example@127.0.0.1/", "http://127.0.0.1@public.example/", "http://u:p@public.example/",
    "http://127.0.0.1\\@public.example/", "http://public.example\\@127.0.0.1/", "http://127.0.0.1#@public.example/",
    "http://127.0.0.1?@public.example/", "http://public.example:80:80/", "http://public.example:99999/",
    "http://public.example:22/", "http://public.example:6379/", "http://pub lic.example/", "http://127.0.0.1\t/",
    "http://public.example/\r\nHost: x", "http://%31%32%37.0.0.1/", "http://[127.0.0.1]/", "http://[::1/",
    "http://public.example/" + "x" * 5000, "", "public.example",
]  # fmt: skip


class Slow(httpx.SyncByteStream):
    def __init__(self, chunks: list[bytes], fault: Exception | None = None) -> None:
        self.chunks, self.fault = chunks, fault

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.fault:
            raise self.fault


class World(httpx.BaseTransport):
    """Names and servers; remembers which addresses were connected to."""

    def __init__(self) -> None:
        self.connected: list[tuple[str, str, str | None]] = []
        self.answers: dict[str, httpx.Response] = {}
        self.resolved: list[str] = []
        self.names = dict(NAMES)

    def resolve(self, host: str, _port: int) -> list[str]:
        self.resolved.append(host)
        if host.rstrip(".").lower() not in self.names:
            raise OSError("no such name")
        return self.names[host.rstrip(".").lower()]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sni = request.extensions.get("sni_hostname")
        self.connected.append((request.url.host, request.headers["host"], sni))
        return self.answers.get(request.headers["host"] + request.url.path, httpx.Response(200, stream=Slow([b"ok"])))

    def fetcher(
        self, *, allowed: frozenset[str] = frozenset(), refused: frozenset[tuple[str, int]] = frozenset()
    ) -> Fetcher:
        return Fetcher(Rules(allowed=allowed, refused=refused), resolver=self.resolve, transport=self)


@pytest.fixture
def world() -> World:
    return World()


def get(fetcher: Fetcher, url: str, target: Path, **settings: float) -> bytes:
    wanted = {"largest": 1000, "seconds": 60.0, **settings}
    fetched = fetcher.download(url, target, largest=int(wanted["largest"]), seconds=wanted["seconds"])
    content = target.read_bytes()
    assert (fetched.size, fetched.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    target.unlink()
    return content


def test_no_spelling_leads_inside(world: World, tmp_path: Path) -> None:
    assert len(REFUSED) >= 60
    for url in REFUSED:
        for ask in (
            lambda url=url: get(world.fetcher(), url, tmp_path / "f"),
            lambda url=url: world.fetcher().post(url, b"{}", headers={}, seconds=60),
        ):
            with pytest.raises(GatewayError) as caught:
                ask()
            assert caught.value.code in ("INVALID_ARGUMENT", "UNAVAILABLE"), url
            assert "u:p" not in caught.value.message
    assert world.connected == []
    assert list(tmp_path.iterdir()) == []


def test_the_address_that_was_checked_is_connected_to(world: World, tmp_path: Path) -> None:
    assert get(world.fetcher(), "https://public.example/a?b=c#d", tmp_path / "f") == b"ok"
    assert get(world.fetcher(), "http://six.example:8080/", tmp_path / "f") == b"ok"
    assert get(world.fetcher(), f"https://{PUBLIC}/", tmp_path / "f") == b"ok"
    assert world.connected == [
        (PUBLIC, "public.example", "public.example"),
        ("2606:2800:220:1:248:1893:25c8:1946", "six.example:8080", "six.example"),
        (PUBLIC, PUBLIC, PUBLIC),
    ]
    assert world.resolved == ["public.example", "six.example"]  # once each


def test_a_name_that_changes_its_mind(world: World, tmp_path: Path) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    fetcher = Fetcher(Rules(allowed=frozenset()), resolver=rebinding, transport=world)
    assert get(fetcher, "http://rebind.example/", tmp_path / "f") == b"ok"
    with pytest.raises(GatewayError, match="not a public address"):
        get(fetcher, "http://rebind.example/", tmp_path / "f")
    assert [address for address, _, _ in world.connected] == [PUBLIC]


@pytest.mark.parametrize("to", ["http://127.0.0.1/", "http://private.example/x", "file:///etc/passwd", "//localhost/",
                                "http://u:p@public.example/", "gopher://public.example/"])  # fmt: skip
def test_redirects_go_through_the_same_door(world: World, tmp_path: Path, to: str) -> None:
    world.answers["public.example/a"] = httpx.Response(302, headers={"location": to})
    with pytest.raises(GatewayError, match="INVALID_ARGUMENT"):
        get(world.fetcher(), "http://public.example/a", tmp_path / "f")
    assert [address for address, _, _ in world.connected] == [PUBLIC]


def test_redirects(world: World, tmp_path: Path) -> None:
    world.answers["public.example/a"] = httpx.Response(302, headers={"location": "/b", "set-cookie": "k=v"})
    world.answers["public.example/b"] = httpx.Response(307, headers={"location": "https://six.example/c"})
    assert get(world.fetcher(), "https://public.example/a", tmp_path / "f") == b"ok"
    world.answers["public.example/loop"] = httpx.Response(302, headers={"location": "/loop"})
    world.connected.clear()
    with pytest.raises(GatewayError, match="more than 5 redirects"):
        get(world.fetcher(), "https://public.example/loop", tmp_path / "f")
    assert len(world.connected) == 6
    assert world.fetcher().post("https://public.example/loop", b"{}", headers={}, seconds=60) == 302


def test_the_operator_s_list(world: World, tmp_path: Path) -> None:
    allowed = allowed_hosts({"TRAINER_GATEWAY_ALLOWED_HOSTS": " lan.example, loop.example:9000 ,meta.example"})
    fetcher = world.fetcher(allowed=allowed)
    assert get(fetcher, "http://lan.example:1234/", tmp_path / "f") == b"ok"
    assert get(fetcher, "http://loop.example:9000/", tmp_path / "f") == b"ok"
    for url in ("http://loop.example/", "http://192.168.7.7/", "http://meta.example/"):  # metadata never
        with pytest.raises(GatewayError, match="not a public address"):
            get(fetcher, url, tmp_path / "f")


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_the_gateway_does_not_ask_itself(world: World, tmp_path: Path, listens: str) -> None:
    """Not even where the operator names its host, nor for a URL that it has signed; another port is not its own."""
    allowed = frozenset({"localhost", "loop.example", "six-loop.example", "127.0.0.1", "127.1.2.3", "0.0.0.0", "[::1]",
                         "::1", "mapped-loop.example", "lan.example"})  # fmt: skip
    world.names["mapped-loop.example"] = ["::ffff:127.0.0.1"]
    fetcher = world.fetcher(allowed=allowed, refused=frozenset({(listens, 8787)}))
    hosts = ("localhost", "loop.example", "six-loop.example", "127.0.0.1", "127.1.2.3", "0.0.0.0", "[::1]",
             "mapped-loop.example")  # fmt: skip
    world.answers["loop.example:9000/in"] = httpx.Response(302, headers={"location": "http://localhost:8787/v1"})
    for url in (
        *(f"http://{host}:8787/files/a/rows.jsonl?signature=s" for host in hosts),
        "http://loop.example:9000/in",
    ):
        with pytest.raises(GatewayError, match="is this gateway itself") as caught:
            get(fetcher, url, tmp_path / "f")
        assert (caught.value.code, "signature" in caught.value.message) == ("INVALID_ARGUMENT", False)
    assert [host for _, host, _ in world.connected] == ["loop.example:9000"]
    assert get(fetcher, "http://loop.example:9000/", tmp_path / "f") == b"ok"
    assert get(fetcher, "http://lan.example:8787/", tmp_path / "f") == b"ok"  # another machine's


def test_where_the_gateway_listens_is_known_from_its_folder(tmp_path: Path) -> None:
    assert Rules.of_gateway(tmp_path).refused == frozenset()
    for url, listens in (("http://127.0.0.1:8787", "127.0.0.1"), ("http://[::]:8787", "::")):
        (tmp_path / "server.json").write_text(json.dumps({"url": url, "pid": 1}))
        assert Rules.of_gateway(tmp_path).refused == {(listens, 8787)}


def test_addresses() -> None:
    for text in ("93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::"):
        assert may_connect(ipaddress.ip_address(text)), text
    for text in ("::ffff:8.8.8.8",):  # stands for a public one
        assert may_connect(ipaddress.ip_address(text))


def test_limits(world: World, tmp_path: Path) -> None:
    fetcher, target = world.fetcher(), tmp_path / "f"

    def refused(response: httpx.Response, code: str, seconds: float = 60) -> None:
        world.answers["public.example/x"] = response
        with pytest.raises(GatewayError) as caught:
            get(fetcher, "http://public.example/x?token=hunter2", target, seconds=seconds)
        assert caught.value.code == code
        assert "hunter2" not in caught.value.message
        assert not target.exists()

    refused(httpx.Response(200, headers={"content-length": "1001"}, stream=Slow([])), "INVALID_ARGUMENT")
    refused(httpx.Response(200, stream=Slow([b"x" * 600, b"x" * 600])), "INVALID_ARGUMENT")  # says no length
    refused(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Slow([b"x"])), "INVALID_ARGUMENT")
    refused(httpx.Response(200, stream=Slow([b"x"], httpx.ReadTimeout("slow"))), "DEADLINE_EXCEEDED")
    refused(httpx.Response(200, stream=Slow([b"x"], httpx.RemoteProtocolError("cut"))), "UNAVAILABLE")
    refused(httpx.Response(200, stream=Slow([b"x", b"y"])), "DEADLINE_EXCEEDED", seconds=-1)
    refused(httpx.Response(404), "FAILED_PRECONDITION")
    refused(httpx.Response(503), "UNAVAILABLE")
    world.answers["public.example/x"] = httpx.Response(200, stream=Slow([b"x" * 1000]))
    assert len(get(fetcher, "http://public.example/x", target)) == 1000


class Dripping(BaseHTTPRequestHandler):
    """Sends its head byte by byte, and never ends it."""

    def handle(self) -> None:
        self.rfile.readline()
        for one in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1000:
            try:
                self.wfile.write(bytes([one]))
                threading.Event().wait(0.02)
            except OSError:
                return


def test_a_dripping_head_ends_in_time(tmp_path: Path) -> None:
    """Each byte comes soon enough; all of them would take 20 s."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            fetcher = Fetcher(Rules(allowed=frozenset({f"127.0.0.1:{server.server_address[1]}"})))
            with pytest.raises(GatewayError, match="took too long") as caught:
                get(fetcher, f"http://127.0.0.1:{server.server_address[1]}/", tmp_path / "f", seconds=0.2)
        finally:
            server.shutdown()
            thread.join()
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_real_server(tmp_path: Path) -> None:
    heard: list[tuple[str, str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.command, self.path, dict(self.headers)))
            self.send_response(302 if self.path == "/from" else 200)
            self.send_header("location", "/to")
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")

        def do_POST(self) -> None:
            heard.append((self.command, self.rfile.read(int(self.headers["content-length"])).decode(), {}))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            port = server.server_address[1]
            with pytest.raises(GatewayError, match="INVALID_ARGUMENT"):
                get(Fetcher(Rules(allowed=frozenset())), f"http://127.0.0.1:{port}/", tmp_path / "f")
            assert heard == []
            named = Fetcher(
                Rules(allowed=frozenset({f"files.example:{port}"})), resolver=lambda host, _port: ["127.0.0.1"]
            )
            assert get(named, f"http://files.example:{port}/from", tmp_path / "f") == b"bytes"
            assert named.post(f"http://files.example:{port}/hook", b"{}", headers={"x": "y"}, seconds=60) == 204
        finally:
            server.shutdown()
            thread.join()
    assert [(method, what) for method, what, _ in heard] == [("GET", "/from"), ("GET", "/to"), ("POST", "{}")]
    said = {key.lower(): value for key, value in heard[0][2].items()}
    assert said["host"] == f"files.example:{port}"
    assert not {"authorization", "cookie", "proxy-authorization"} & set(said)


@pytest.mark.parametrize("url", [
    "s3://", "s3://b", "s3://Bucket/k", "s3://bucket/../k", "s3://a@bucket/k", "s3://bucket:9000/k", "s3://bucket/k?x=1",
    "s3://169.254.169.254/k", "s3://127.0.0.1/k", "az://c/k", "az://cont@evil.example/k", "az://cont@a/k",
    "az://cont@acc.blob.core.windows.net.evil.example/k", "az://cont@acc.file.core.windows.net/k", "abfs://u:p@acc/k",
    "az://cont@127.0.0.1/k", "memory://x/y", "file:///etc/passwd", "s3://bucket\\@evil/k", "gs://bucket",
    "gs://Bucket/k", "s3://bucket/", "s3://bucket/folder/", "s3://[", "az://cont@acc/folder/",
])  # fmt: skip
def test_bucket_urls_that_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(GatewayError) as caught:
        Fetcher(Rules(allowed=frozenset())).download(url, tmp_path / "f", largest=1, seconds=1)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_bucket_urls() -> None:
    assert locate("s3://my-bucket/a/b.jsonl").key == "a/b.jsonl"
    for host in ("acc", "acc.blob.core.windows.net", "acc.dfs.core.windows.net"):
        found = locate(f"abfss://cont@{host}/a/b.jsonl")
        assert (found.scheme, found.bucket, found.account, found.key) == ("az", "cont", "acc", "a/b.jsonl")
    found = locate("https://acc.blob.core.usgovcloudapi.net/cont/a%20b/c.jsonl")
    assert (found.scheme, found.bucket, found.account, found.key) == ("az", "cont", "acc", "a b/c.jsonl")
    assert found.suffix == locate("az://cont@acc.dfs.core.usgovcloudapi.net/k").suffix == "core.usgovcloudapi.net"
    for path in ("cont/../k", "cont/%2e%2e/k", "c/k", "cont/k?sig=hunter2"):
        with pytest.raises(GatewayError) as caught:
            locate(f"https://acc.blob.core.windows.net/{path}")
        assert "hunter2" not in caught.value.message
    host = "acc.blob.core.windows.net"
    schemes = {
        "s3://b/k": S3, "az://c/k": AZURE, f"https://{host}/c/k": AZURE, "gs://b/k": "", f"http://{host}/c/k": "",
        f"https://{host}.evil.example/c/k": "", f"https://{host}:8443/c/k": "", f"https://u@{host}/c/k": "",
    }  # fmt: skip
    assert {url: scheme_of(url) for url in schemes} == schemes


def test_a_public_object_in_google_s_store(world: World, tmp_path: Path) -> None:
    world.names["storage.googleapis.com"] = [PUBLIC]
    world.answers["storage.googleapis.com/some-bucket/a%/rows.jsonl"] = httpx.Response(200, stream=Slow([b"rows"]))
    assert get(world.fetcher(), "gs://some-bucket/a%/rows.jsonl", tmp_path / "f") == b"rows"
    assert world.connected == [(PUBLIC, "storage.googleapis.com", "storage.googleapis.com")]


def test_credentials() -> None:
    aws = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "hunter2"}
    for more in ({}, {"aws_session_token": "t", "region": "eu-central-1"}):
        assert credentials_of(json.dumps({**aws, **more}).encode(), S3, what="s") == {**aws, **more}
    string = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=aGk=;EndpointSuffix=core.windows.net"
    named = {"account_name": "acc", "endpoint_suffix": "core.windows.net"}
    for value, found in (
        ({"sas_token": "?sv=1&sig=a%3D"}, {"sas_token": "sv=1&sig=a%3D"}),
        ({"account_key": "aGk="}, {"account_key": "aGk="}),
        ({"connection_string": string}, {**named, "account_key": "aGk="}),
        (
            {"connection_string": "AccountName=acc;SharedAccessSignature=sv=1&sig=x"},
            {**named, "sas_token": "sv=1&sig=x"},
        ),
    ):
        assert credentials_of(json.dumps(value).encode(), AZURE, what="s") == found


EVIL = "http://169.254.169.254/hunter2"
STRINGS = ("AccountName=../hunter2;AccountKey=aGk=", "AccountName=acc;AccountKey=aGk=;EndpointSuffix=hunter2.example",
           f"AccountName=acc;AccountKey=aGk=;BlobEndpoint={EVIL}", "AccountName=acc", "UseDevelopmentStorage=true",
           f"DefaultEndpointsProtocol={EVIL}?;AccountName=acc;AccountKey=aGk=;EndpointSuffix=core.windows.net",
           "DefaultEndpointsProtocol=HTTP;AccountName=acc;AccountKey=aGk=", "AccountName=acc;AccountName=hunter2",
           f"AccountName=acc;SharedAccessSignature=a b;{EVIL}", "hunter2")  # fmt: skip
KEYS = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x"}


@pytest.mark.parametrize(("scheme", "value"), [
    (S3, "hunter2"), (S3, {}), (S3, {"aws_access_key_id": "hunter2"}), (S3, ["hunter2"]), (S3, {"endpoint_url": EVIL}),
    *((S3, {**KEYS, **more}) for more in (
        {"endpoint_url": EVIL}, {"endpoint_url": "https://hunter2.example"}, {"endpoint_url": "file:///hunter2"},
        {"endpoint_url": "http://u:hunter2@lan.example"}, {"endpoint_url": "http://lan.example/hunter2?x"},
        {"endpoint_url": "http://[hunter2"}, {"region": "eu/hunter2"}, {"region": "hunter2.example"},
        {"aws_session_token": "hunter2\r\nx: y"}, {"profile": "hunter2"})),
    *(("az", one) for one in (
        {"sas_token": "a", "account_key": "hunter2"}, {"account_key": 7}, {"account_key": "hunter2;"},
        {"sas_token": f"sv=1;BlobEndpoint={EVIL}"}, {"sas_token": "hunter2 x"}, {"sas_token": "?"})),
    *(("az", {"connection_string": text}) for text in STRINGS),
])  # fmt: skip
def test_credentials_that_are_none(scheme: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of a secret sends the gateway somewhere, and none is repeated."""
    monkeypatch.setenv("TRAINER_GATEWAY_ALLOWED_HOSTS", "lan.example,169.254.169.254")
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(GatewayError) as caught:
        credentials_of(text.encode(), scheme, what="accounts/local/secrets/s")
    assert caught.value.message.startswith("accounts/local/secrets/s")
    if "169.254" not in text:
        assert "hunter2" not in caught.value.message


def test_the_gateway_s_own_credentials_are_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    assert open_bucket("s3://bucket/key")._fs.anon is True
    theirs = open_bucket("s3://bucket/key", {"aws_access_key_id": "theirs", "aws_secret_access_key": "x"})
    assert (theirs._fs.key, theirs._fs.anon) == ("theirs", False)


def test_nor_are_those_for_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client fills in whatever is left open from the environment, the connection string before all else."""
    pytest.importorskip("adlfs")
    own = "AccountName=own;AccountKey=b3du;BlobEndpoint=http://127.0.0.1:1/own"
    for name, value in (
        ("CONNECTION_STRING", own),
        ("ACCOUNT_KEY", "b3du"),
        ("SAS_TOKEN", "own"),
        ("ACCOUNT_NAME", "own"),
    ):
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)

    def said(url: str, **credentials: str) -> str:
        return open_bucket(url, credentials)._fs.connection_string

    theirs = "BlobEndpoint=https://acc.blob.core.windows.net"
    assert said("az://cont@acc/key") == theirs
    assert said("az://cont@acc/key", account_key="aGk=") == f"{theirs};AccountName=acc;AccountKey=aGk="
    assert (
        said("https://acc.blob.core.windows.net/cont/key", sas_token="sv=1") == f"{theirs};SharedAccessSignature=sv=1"
    )
    gov = "https://acc.blob.core.usgovcloudapi.net"
    assert said("az://cont@acc.blob.core.usgovcloudapi.net/key") == f"BlobEndpoint={gov}"
    with pytest.raises(GatewayError, match="name the storage account"):
        said("az://cont/key")
    with pytest.raises(GatewayError, match="is of the account acc, the credentials are of other"):
        said("az://cont@acc/key", account_name="other", account_key="aGk=")
