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

from scripts.prove_sync import cut_upload, hour_offline, say, write_model, write_run
from tests.faulty_gateway import FAULTS, LIMITS, FaultyGateway, ScaledClock, breaches, faulty_gateway, untold
from trainer import history
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.pacing import Backoff, KeptWaits, retry_after
from trainer.gateway.sync import Syncer

ROOT = Path(__file__).resolve().parents[2]
SCALE = 0.05


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
    with GatewayClient(server.url, run.name, timeout=0.4, clock=ScaledClock(SCALE)) as found:
        yield found


def syncer(run: Path, client: GatewayClient, **settings: Any) -> Syncer:
    return Syncer(run, client, **{"clock": ScaledClock(SCALE), "show": lambda line: None, **settings})


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, client: GatewayClient, run: Path, fault: str
) -> None:
    server.late = 0.45
    say(run, 1, "log", line="one")
    telling = syncer(run, client)
    assert telling.push_once() == 1
    for seq in range(2, 8):
        say(run, seq, "metrics", step=seq)
    server.script = [fault, fault]
    assert telling.drain(100)
    say(run, 8, "state", state="JOB_STATE_COMPLETED", message="done")
    assert telling.drain(100)
    assert untold(served[1], run) == []
    assert breaches(server.seen, scale=SCALE) == []
    assert [one.fault for one in server.seen].count(fault) == 2


@pytest.mark.parametrize("fault", LIMITS)
def test_a_model_goes_up_through_each_refusal(
    served: tuple[FaultyGateway, Gateway], server: FaultyGateway, client: GatewayClient, run: Path, fault: str
) -> None:
    say(run, 1, "model", **write_model(run))
    server.script = [word for _ in range(9) for word in (fault, "")]
    assert syncer(run, client).drain(100)
    assert untold(served[1], run) == []
    assert breaches(server.seen, scale=SCALE) == []


def test_whoever_must_wait_long_is_told_so_and_does_not_ask(server: FaultyGateway, client: GatewayClient) -> None:
    client.not_before["127.0.0.1"] = client._clock.now() + 500
    client.not_before[client.base_url] = client._clock.now() + 500
    for _ in range(2):
        with pytest.raises(GatewayError, match="left alone") as caught:
            client.get("accounts/local")
        assert 490 < caught.value.retry_after <= 500
    assert server.seen == []


def test_a_successor_waits_as_its_killed_predecessor_was_asked_to(server: FaultyGateway, run: Path) -> None:
    say(run, 1, "log", line="one")
    clock = ScaledClock(SCALE)
    first = GatewayClient(server.url, timeout=5.0, first_wait=0.1, clock=clock)
    syncer(run, first, clock=clock)
    first.not_before[server.url] = clock.now() + 500
    first.close()  # as kill -9 would: nothing is said, only the files are there
    clock.shift = 100.0
    with GatewayClient(server.url, timeout=5.0, first_wait=0.1, clock=clock) as second:
        with pytest.raises(GatewayError, match="left alone") as caught:
            syncer(run, second, clock=clock).push_once()
        assert 380 < caught.value.retry_after <= 400
    assert server.seen == []
    clock.shift = -1e9  # another boot of the machine: its clock begins anew, and the wait is no longer than was asked
    third = KeptWaits(run / "sync_waits.json", clock)
    assert 0 < third[server.url] - clock.now() <= 500
    clock.shift = 700.0
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
    assert syncer(run, client).drain(10)
    assert history.parked(run) == [f"event {seq} (log): this record is refused" for seq in (7, 30)]
    with (run / "sync_parked.jsonl").open("a") as stream:
        stream.write('{"key": "tor')
    assert syncer(run, client).drain(10)
    assert len(history.parked(run)) == 2


def test_a_line_that_is_no_event_is_set_aside(
    served: tuple[FaultyGateway, Gateway], client: GatewayClient, run: Path
) -> None:
    say(run, 1, "log", line="one")
    with (run / "sync.jsonl").open("a") as stream:
        stream.write("\0\0\0\n")
    say(run, 2, "log", line="two")
    for _ in range(2):
        assert syncer(run, client).drain(10)
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
        threads = [threading.Thread(target=one.drain, args=(200,)) for one in tellers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.rates = {}
    assert untold(served[1], run) == []
    told = [one.seqs for one in server.seen if one.seqs and not one.fault]
    assert sorted(seq for seqs in told for seq in seqs) == list(range(1, 200)) or len(told) < 80
    with tellers[0]._only_teller(), pytest.raises(GatewayError, match="another process is telling"):
        tellers[1].push_once()


def test_a_slow_gateway_is_told_less_at_a_time(server: FaultyGateway, client: GatewayClient, run: Path) -> None:
    telling = syncer(run, client, batch=64)
    telling.push_once()
    for seq in range(1, 65):
        say(run, seq, "log", line=f"line {seq}")
    server.script = ["silent"] * 6
    assert telling.drain(300)
    counts = [len(one.seqs) for one in server.seen if one.fault == "silent" and one.seqs]
    assert (max(counts), min(counts)) == (64, 32)


def test_stopping_does_not_wait_for_the_gateway(server: FaultyGateway, run: Path) -> None:
    server.offline()
    try:
        client = GatewayClient(server.url, first_wait=60.0, timeout=1.0)
        telling = Syncer(run, client, show=lambda line: None)
        say(run, 1, "log", line="one")
        telling.start()
        time.sleep(0.2)
        began = time.monotonic()
        assert not telling.drain(0.1)
        assert time.monotonic() - began < 3
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
    assert (answer.status_code, answer.json()["code"]) == (500, 15)
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
