"""Proves that telling a gateway loses nothing, doubles nothing and hurries nobody: `python scripts/prove_sync.py`.

The storm is real: real processes tell of several runs over real sockets to the real app behind a server that answers
30 % 429, 20 % 503, 10 % not at all and 5 % with a reset, is away for a while, and refuses some records for good; twice
a telling process is killed (SIGKILL). Then an hour without a gateway, on a simulated clock, and a file whose
connection is cut twenty times. What happened is read from the server's history and the gateway's files. Prints the
figures; exit status 1 on any breach. `--minutes 10 --records 1000 --megabytes 1024` is the full proof; `--only upload`
runs one part of it.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faulty_gateway import (  # noqa: E402
    STORM,
    FaultyGateway,
    ScaledClock,
    breaches,
    busiest,
    faulty_gateway,
    summary,
    untold,
)  # fmt: skip
from tests.gateway_kit import make_spec  # noqa: E402
from trainer.gateway.client import GatewayClient  # noqa: E402
from trainer.gateway.sync import Syncer  # noqa: E402
from trainer.jobs import SupervisedFineTuningJob  # noqa: E402
from trainer.runs import Inputs, RowSource  # noqa: E402

RUNS = 4
_FULL_SECONDS = 120.0  # storms at least this long run in real time, shorter ones on a faster clock
_HOUR_EVENTS = 20_000


def write_run(folder: Path) -> Path:
    """A run that has reported nothing yet."""
    job = SupervisedFineTuningJob(dataset="rows.jsonl", base_model="org/base")
    inputs = Inputs(base_model="/base", train=RowSource(name="rows.jsonl", path="/rows.jsonl"))
    make_spec("sft", job, folder.name, inputs).save(folder)
    return folder


def write_model(run: Path, *, size: int = 8) -> dict[str, Any]:
    """The body of a model event, and the files it speaks of."""
    folder = run / "model"
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    draw, block = random.Random(size), 1 << 20
    with (folder / "adapter_model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, size, block):
            stream.write(draw.randbytes(min(block, size - start)))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "target_modules": ["q"]}))
    details = {"baseModel": "org/base", "r": 2, "targetModules": ["q"]}
    return {"id": f"model-{run.name}", "kind": "HF_PEFT_ADDON", "path": str(folder), "peftDetails": details,
            "contextLength": 64}  # fmt: skip


def say(run: Path, seq: int, kind: str, /, **body: Any) -> None:
    """Append an event to the run's journal, as the worker does."""
    with (run / "sync.jsonl").open("a") as stream:
        stream.write(json.dumps({"seq": seq, "time": "", "kind": kind, "body": body}) + "\n")


def write_journal(run: Path, count: int, *, poison: int, seconds: float) -> None:
    """Report `count` events in `seconds`: what a run reports, with one that the gateway refuses among them."""
    for seq in range(1, count - 1):
        if seq == poison:
            say(run, seq, "log", line="never", poison=True)
        elif seq % 3:
            say(run, seq, "metrics", step=seq, loss=1.0 / seq)
        else:
            say(run, seq, "log", line=f"line {seq} of {run.name}")
        time.sleep(seconds / count)
    say(run, count - 1, "model", **write_model(run))
    say(run, count, "state", state="JOB_STATE_COMPLETED", message="done")
    (run / "written").touch()


def tell(run: Path, url: str, *, scale: float) -> int:
    """What a telling process does: tells until the run has ended and the gateway knows all."""
    clock = ScaledClock(scale)
    client = GatewayClient(url, run.name, timeout=max(1.0, 5.0 * scale), clock=clock)
    syncer = Syncer(run, client, clock=clock, show=lambda line: print(line, file=sys.stderr))
    syncer.start()
    while not (run / "written").exists():
        time.sleep(0.1)
    while not syncer.drain(600):
        time.sleep(scale)
    (run / "rss").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    return 0


class Tellers:
    """The telling processes, one for each run."""

    def __init__(self, runs: list[Path], url: str, *, scale: float) -> None:
        self._url, self._scale = url, scale
        self.processes = {run: self._start(run) for run in runs}

    def kill(self, run: Path) -> None:
        """SIGKILL, and another one takes over."""
        self.processes[run].kill()
        self.processes[run].wait()
        self.processes[run] = self._start(run)

    def wait(self, timeout: float) -> list[str]:
        """What did not end in time, or badly."""
        deadline = time.monotonic() + timeout
        found = []
        for run, process in self.processes.items():
            try:
                status = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if status:
                found.append(f"{run.name}: the telling process ended with status {status}")
        return found

    def _start(self, run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--tell", str(run), "--url", self._url, "--scale", str(self._scale)]
        with (run / "teller.log").open("ab") as log:
            return subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})


def storm(top: Path, *, seconds: float, records: int, seed: int) -> list[str]:
    """Figures 20 and 22, and the killed processes of 21."""
    scale = 1.0 if seconds >= _FULL_SECONDS else 0.05
    runs = [write_run(top / f"run-{number}") for number in range(1, RUNS + 1)]
    count = records // RUNS
    with faulty_gateway(top / "gateway", seed=seed, rates=STORM, scale=scale) as (server, gateway):
        server.poison = lambda event: bool(event["body"].get("poison"))
        writers = [
            threading.Thread(target=write_journal, args=(run, count), kwargs={"poison": count // 2, "seconds": seconds})
            for run in runs
        ]
        tellers = Tellers(runs, server.url, scale=scale)
        began = time.monotonic()
        for writer in writers:
            writer.start()
        _disturb(server, tellers, runs, seconds=seconds)
        for writer in writers:
            writer.join()
        found = tellers.wait(max(300.0, seconds))
        took = time.monotonic() - began
        found += breaches(server.seen, scale=scale)  # of killed tellers and their successors too
        for run in runs:
            found += untold(gateway, run, poison=[count // 2])
        _figures(server, runs, took=took, scale=scale)
    return found


def _disturb(server: FaultyGateway, tellers: Tellers, runs: list[Path], *, seconds: float) -> None:
    """Two kills and an outage, spread over the storm."""
    time.sleep(seconds * 0.25)
    tellers.kill(runs[0])
    time.sleep(seconds * 0.15)
    server.offline()
    time.sleep(seconds * 0.1)
    tellers.kill(runs[0])
    server.online()
    time.sleep(seconds * 0.1)


def _figures(server: FaultyGateway, runs: list[Path], *, took: float, scale: float) -> None:
    kept = sum(path.stat().st_size for run in runs for path in run.glob("sync*"))
    journal = sum((run / "sync.jsonl").stat().st_size for run in runs)
    rates = [busiest([one.came for one in server.seen if one.who == run.name], 10 * scale) for run in runs]
    memory = max(int((run / "rss").read_text()) for run in runs if (run / "rss").exists()) // 1024
    print(f"storm: {took:.0f} s (a second lasts {scale:g} s), {summary(server.seen)}")
    print(f"storm: at most {max(rates)} requests of one run in 10 s; {kept} bytes on disk, {journal} of them journals; "
          f"largest telling process {memory} MiB")  # fmt: skip


class Away(httpx.BaseTransport):
    """No gateway until it is `back`; how often it was asked meanwhile."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner, self.back, self.asked = inner, False, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self.back:
            self.asked += 1
            raise httpx.ConnectError("no route to the gateway")
        return self.inner.handle_request(request)


class Simulated:
    """A clock on which waiting takes no time."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, until: threading.Event) -> bool:
        self.time += seconds
        return until.is_set()


def hour_offline(top: Path, *, events: int = _HOUR_EVENTS) -> list[str]:
    """Figure 21: a simulated hour away, a long outbox meanwhile, killed twice on the way back; memory stays flat."""
    run = write_run(top / "run-9")
    with GatewayClient.in_process(top / "gateway") as inner:
        clock = Simulated()
        transport = Away(inner._http._transport)
        client = GatewayClient("http://embedded", "run-9", transport=transport, clock=clock)
        with (run / "sync.jsonl").open("w") as stream:
            for seq in range(1, events + 1):
                event = {"seq": seq, "time": "", "kind": "metrics", "body": {"step": seq, "loss": 1.0 / seq}}
                stream.write(json.dumps(event) + "\n")
        while clock.now() < 3600.0:
            Syncer(run, client, clock=clock, show=lambda line: None).drain(3600.0 - clock.now())
        transport.back = True
        for _ in range(2):  # what a kill leaves behind: some told, and nothing but the files known
            _tell_some(run, client, clock)
        tracemalloc.start()
        drained = Syncer(run, client, clock=clock).drain(600)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gateway = inner._http._transport._app.state.gateway  # type: ignore[attr-defined]
        found = untold(gateway, run) + ([] if drained else ["the outbox did not drain"])
    size = (run / "sync.jsonl").stat().st_size
    print(f"offline: {transport.asked} connections tried in a simulated hour; outbox of {events} events "
          f"({size} bytes) drained, {peak >> 20} MiB of memory at most, the gateway in the same process")  # fmt: skip
    if transport.asked > 3600 / 30 * 10:
        found.append(f"{transport.asked} connections tried in an hour without a gateway")
    if peak > 64 << 20:
        found.append(f"draining took {peak >> 20} MiB")
    return found


def _tell_some(run: Path, client: GatewayClient, clock: Simulated) -> None:
    syncer = Syncer(run, client, clock=clock, batch=200)
    syncer._catch_up()
    syncer._tell_job()
    for _ in range(5):
        syncer._fill()
        syncer._push_next()


def cut_upload(top: Path, *, megabytes: int, cuts: int = 20) -> list[str]:
    """Figure 23: a file whose connection is cut `cuts` times arrives whole, by little more than its bytes."""
    run = write_run(top / "run-8")
    size = megabytes << 20
    body = write_model(run, size=size)
    with faulty_gateway(top / "gateway-8", scale=0.05) as (server, gateway):
        server.only = lambda seen: seen.method == "PUT" and "adapter_model" in seen.path
        server.script = [fault for _ in range(cuts) for fault in ("", "reset-middle")]
        server.cut_after = size // (cuts + 1)
        client = GatewayClient(server.url, "run-8", clock=ScaledClock(0.05))
        began, held = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model = client.upload_model(Path(body["path"]), body["id"], body={"kind": "HF_PEFT_ADDON"})
        took = time.monotonic() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) >> 10
        sent = sum(one.body_bytes for one in server.seen if server.only(one))
        there = gateway.files.path(model["name"], "adapter_model.safetensors")
        ours = Path(body["path"]) / "adapter_model.safetensors"
        whole, share = filecmp.cmp(there, ours, shallow=False), sent / ours.stat().st_size
        client.close()
    print(f"upload: {megabytes} MiB, cut {cuts} times: {share:.3f} of its bytes sent, {took:.1f} s, peak memory of "
          f"client, faulty server and gateway together grown by {grown} MiB")  # fmt: skip
    found = [] if whole and model["state"] == "READY" else ["the file did not arrive as it was"]
    return found + ([f"{share:.3f} of the bytes were sent"] if share > 1.1 else [])


def main() -> int:
    """All proofs, or one telling process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of storm")
    parser.add_argument("--records", type=int, default=1000, help="over all runs")
    parser.add_argument("--megabytes", type=int, default=256, help="of the file whose connection is cut")
    parser.add_argument("--only", choices=("storm", "offline", "upload"), help="one part of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tell", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tell:
        return tell(options.tell, options.url, scale=options.scale)
    with tempfile.TemporaryDirectory(prefix="prove-sync-") as place:
        top = Path(place)
        found: list[str] = []
        proofs = {
            "storm": lambda: storm(top, seconds=options.minutes * 60, records=options.records, seed=options.seed),
            "offline": lambda: hour_offline(top),
            "upload": lambda: cut_upload(top, megabytes=options.megabytes),
        }
        for name, proof in proofs.items():
            if options.only not in (None, name):
                continue
            new = proof()
            print("\n".join(f"BREACH: {breach}" for breach in new) or "  no breach", flush=True)
            found += new
    print("nothing lost, nothing doubled, nobody hurried" if not found else f"{len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
