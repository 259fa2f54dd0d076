"""Client and Syncer against a gateway that misbehaves over real sockets: everything once, in order, and in its time."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.prove_sync import Simulated, cut_upload, hour_offline, say, write_model, write_run
from tests.faulty_gateway import FAULTS, LIMITS, FaultyGateway, ScaledClock, breaches, faulty_gateway, untold
from trainer import history
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.pacing import Backoff, KeptWaits, retry_after
from trainer.gateway.sync import Syncer

ROOT = Path(__file__).resolve().parents[2]
SCALE = 0.05
LATE = ("silent", "silent-after", "late")  # faults that a client knows by its own patience alone
LONG = 2000.0  # scaled seconds for telling all: more than a busy machine needs


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultyGateway, Gateway]]:
    with faulty_gateway(tmp_path_factory.mktemp("home") / "gateway", scale=SCALE) as found:
        yield found


@pytest.fixture
def server(served: tuple[FaultyGateway, Gateway]) -> FaultyGateway:
    found = served[0]
    found.script, found.poison, found.only = [], lambda event: False, lambda seen: True
    found.seen.clear()
    return found


_NUMBERS = iter(range(1, 1000))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / f"run-{next(_NUMBERS)}")


@pytest.fixture
def client(server: FaultyGateway, run: Path) -> Iterator[GatewayClient]:
    """One that waits for answers: none of its requests is repeated because the machine is busy."""
    with GatewayClient(server.url, run.name, clock=ScaledClock(SCALE)) as found:
        yield found


@pytest.fixture
def impatient(server: FaultyGateway, run: Path) -> Iterator[GatewayClient]:
    with GatewayClient(server.url, run.name, timeout=0.4, clock=ScaledClock(SCALE)) as found:
        yield found


def syncer(run: Path, client: GatewayClient, **settings: Any) -> Syncer:
    return Syncer(run, client, **{"clock": ScaledClock(SCALE), "show": lambda line: None, **settings})


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, request: pytest.FixtureRequest, run: Path, fault: str
) -> None:
    server.late = 0.45
    say(run, 1, "log", line="one")
    telling = syncer(run, request.getfixturevalue("impatient" if fault in LATE else "client"))
    assert telling.drain(LONG) and telling.acked == 1
    for seq in range(2, 8):
        say(run, seq, "metrics", step=seq)
    server.script = [fault, fault]
    assert telling.drain(LONG)
    say(run, 8, "state", state="JOB_STATE_COMPLETED", message="done")
    assert telling.drain(LONG)
    assert untold(served[1], run) == []
    assert breaches(server.seen, scale=SCALE) == []
    assert [one.fault for one in server.seen].count(fault) == 2


@pytest.mark.parametrize("fault", LIMITS)
def test_a_model_goes_up_through_each_refusal(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, client: GatewayClient, run: Path, fault: str
) -> None:
    say(run, 1, "model", **write_model(run))
    server.script = [word for _ in range(9) for word in (fault, "")]
    assert syncer(run, client).drain(LONG)
    assert untold(served[1], run) == []
    assert breaches(server.seen, scale=SCALE) == []


def test_whoever_must_wait_long_is_told_so_and_does_not_ask(server: FaultyGateway) -> None:
    clock = Simulated()
    with GatewayClient(server.url, clock=clock) as client:
        client.not_before["127.0.0.1"] = client.not_before[client.base_url] = 500.0
        for left in (500.0, 380.0):
            clock.time = 500.0 - left
            with pytest.raises(GatewayError, match="left alone") as caught:
                client.get("accounts/local")
            assert caught.value.retry_after == left
    assert server.seen == []


def test_a_successor_waits_as_its_killed_predecessor_was_asked_to(server: FaultyGateway, run: Path) -> None:
    say(run, 1, "log", line="one")
    clock = Simulated()
    clock.time = 1e6
    with GatewayClient(server.url, clock=clock) as first:
        syncer(run, first, clock=clock)
        first.not_before[server.url] = clock.now() + 500
    # as kill -9 would have it: nothing is said, only the files are there
    clock.time += 100
    with GatewayClient(server.url, clock=clock) as second:
        with pytest.raises(GatewayError, match="left alone") as caught:
            syncer(run, second, clock=clock).push_once()
        assert caught.value.retry_after == 400
    assert server.seen == []
    clock.time = 5.0  # another boot of the machine: its clock begins anew, and the wait is no longer than was asked
    third = KeptWaits(run / "sync_waits.json", clock)
    assert 0 < third[server.url] - clock.now() <= 500
    clock.time = 1e6 + 700
    assert KeptWaits(run / "sync_waits.json", clock) == {}


def test_poison_is_set_aside_once_whatever_happens_between(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, client: GatewayClient, run: Path
) -> None:
    server.poison = lambda event: bool(event["body"].get("poison"))
    for seq in range(1, 41):
        say(run, seq, "log", line=f"line {seq}", **({"poison": True} if seq in (7, 30) else {}))
    server.rates = {"busy-bare": 0.3, "reset-after": 0.2}
    try:
        while syncer(run, client, batch=16)._attempt()[1] is not None:  # a new process each time
            pass
    finally:
        server.rates = {}
    assert untold(served[1], run, poison=[7, 30]) == []
    assert syncer(run, client).drain(LONG)
    assert history.parked(run) == [f"event {seq} (log): this record is refused" for seq in (7, 30)]
    with (run / "sync_parked.jsonl").open("a") as stream:
        stream.write('{"key": "tor')
    assert syncer(run, client).drain(LONG)
    assert len(history.parked(run)) == 2


def test_a_line_that_is_no_event_is_set_aside(
    served: tuple[FaultyGateway, Gateway], client: GatewayClient, run: Path
) -> None:
    say(run, 1, "log", line="one")
    with (run / "sync.jsonl").open("a") as stream:
        stream.write("\0\0\0\n")
    say(run, 2, "log", line="two")
    for _ in range(2):
        assert syncer(run, client).drain(LONG)
    assert served[1].store.get(f"accounts/local/supervisedFineTuningJobs/{run.name}").private["ackedSeq"] == 2
    (line,) = history.parked(run)
    assert "line ending at byte" in line


def test_the_gateways_own_number_counts(
    served: tuple[FaultyGateway, Gateway], client: GatewayClient, run: Path
) -> None:
    for seq in range(1, 6):
        say(run, seq, "log", line=f"line {seq}")
    (run / "sync_state.json").write_text(json.dumps({"ackedSeq": 4, "offset": 10}))
    assert syncer(run, client).push_once() == 5
    assert untold(served[1], run) == []


def test_one_process_tells_at_a_time(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, client: GatewayClient, run: Path
) -> None:
    for seq in range(1, 200):
        say(run, seq, "log", line=f"line {seq}")
    server.only = lambda seen: seen.path.endswith(":report")
    server.rates = {"reset-after": 0.2, "busy-bare": 0.2}
    tellers = [syncer(run, client, batch=5) for _ in range(3)]
    try:
        threads = [threading.Thread(target=one.drain, args=(LONG,)) for one in tellers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.rates = {}
    assert untold(served[1], run) == []
    told = [seq for one in server.seen if not one.fault for seq in one.seqs]
    assert len(told) == len(set(told)) > 100  # what a teller knows to be told, no other tells again
    with tellers[0]._only_teller(), pytest.raises(GatewayError, match="another process is telling"):
        tellers[1].push_once()


def test_a_slow_gateway_is_told_less_at_a_time(server: FaultyGateway, impatient: GatewayClient, run: Path) -> None:
    telling = syncer(run, impatient, batch=64)
    assert telling.drain(LONG)
    for seq in range(1, 65):
        say(run, seq, "log", line=f"line {seq}")
    server.script = ["silent"] * 6
    assert telling.drain(LONG)
    counts = [len(one.seqs) for one in server.seen if one.fault == "silent" and one.seqs]
    assert (max(counts), min(counts)) == (64, 32)


class Waiting(ScaledClock):
    """A clock whose second lasts ten; `begun` is set when somebody waits by it."""

    def __init__(self) -> None:
        super().__init__(10.0)
        self.begun = threading.Event()

    def wait(self, seconds: float, until: threading.Event) -> bool:
        self.begun.set()
        return super().wait(seconds, until)


def test_stopping_does_not_wait_for_the_gateway(server: FaultyGateway, run: Path) -> None:
    clock = Waiting()
    server.offline()
    try:
        with GatewayClient(server.url, first_wait=20.0, clock=clock) as client:
            telling = Syncer(run, client, show=lambda line: None)
            say(run, 1, "log", line="one")
            telling.start()
            assert clock.begun.wait(60)  # 10 to 20 of these seconds, before it asks again
            began = time.monotonic()
            assert not telling.drain(0.1)
            assert time.monotonic() - began < 60
    finally:
        server.online()


def test_a_proxys_words_are_not_the_gateways(server: FaultyGateway, client: GatewayClient) -> None:
    server.script = ["proxy-502"] * 5
    with pytest.raises(GatewayError):
        _ = client.ours
    assert client.ours
    server.script = ["proxy-502", ""]
    assert client.get("accounts/local")["name"] == "accounts/local"
    assert client.ours


def test_a_create_whose_answer_was_lost_is_found(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, client: GatewayClient, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}, '
                                         '{"role": "assistant", "content": "b"}]}\n')  # fmt: skip
    rows = client.upload_dataset(tmp_path / "rows.jsonl")["name"]
    body = {"dataset": rows, "baseModel": "accounts/local/models/tiny", "epochs": 2}
    server.script = ["reset-after"]
    assert client.create_job(body, run.name)["name"].endswith(run.name)
    with pytest.raises(GatewayError, match="ALREADY_EXISTS"):
        client.create_job(body, run.name)
    server.script = ["reset-before"]
    with pytest.raises(GatewayError, match="ALREADY_EXISTS"):
        client.create_job({**body, "epochs": 3}, run.name)


def test_an_hour_away_is_nothing(tmp_path: Path) -> None:
    assert hour_offline(tmp_path, events=3000) == []


def test_a_cut_upload_goes_on_where_it_was(tmp_path: Path) -> None:
    assert cut_upload(tmp_path, megabytes=4, cuts=6) == []


def test_bytes_that_changed_on_the_way_are_not_taken(
    served: tuple[FaultyGateway, Gateway], client: GatewayClient, run: Path
) -> None:
    body = write_model(run, size=4096)
    client.call("Gateway_CreateModel", body={"modelId": body["id"], "model": {"kind": "HF_PEFT_ADDON"}})
    sizes = {"adapter_config.json": str((run / "model/adapter_config.json").stat().st_size)}
    urls = client.call("Gateway_GetModelUploadEndpoint", {"model_id": body["id"]}, body={"filenameToSize": sizes})
    headers = {"Content-Digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"}
    content = (run / "model/adapter_config.json").read_bytes()
    url = urls["filenameToSignedUrls"]["adapter_config.json"]
    answer = client._bare.put(url, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, 15)
    assert not served[1].files.path(f"accounts/local/models/{body['id']}", "adapter_config.json").exists()


def test_waits_grow_and_never_fall_below_what_was_asked() -> None:
    backoff = Backoff(1.0, 8.0)
    limits = [1, 2, 4, 8, 8]
    assert all(limit / 2 <= backoff.next() <= limit for limit in limits)
    assert 30 <= backoff.next(30.0) <= 30.1
    date = {"date": "Mon, 23 Nov 2026 10:00:00 GMT", "retry-after": "Mon, 23 Nov 2026 10:00:07 GMT"}
    assert retry_after(date) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert [retry_after({"retry-after": text}) for text in ("3", "1.5", "-1", "soon", "")] == [3, 1.5, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("prove_sync.py", "--minutes", "0.3", "--megabytes", "32"),
        ("prove_gateway_kill.py", "--rounds", "3", "--creates", "200"),
        ("prove_gateway_kill.py", "--rounds", "1", "--creates", "0", "--workers", "real"),
    ],
)
def test_the_proofs_hold(words: tuple[str, ...]) -> None:
    command = [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
