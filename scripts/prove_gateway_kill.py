"""Proves that a gateway that is killed loses nothing and runs nothing twice: `python scripts/prove_gateway_kill.py`.

Each round starts a real gateway process, posts jobs to it, and kills it (SIGKILL) at random moments while they wait,
start, run and end; each time another one takes over on the same folder. At the end every job must be COMPLETED, its
worker must have been started once, its events must have been applied once and in order, and its model must be READY.
Then four clients create 200 jobs with ids of their own while the gateway is killed again and again. `--workers fake`
(tests/data/fake_worker.py) takes seconds a round; `real` trains the tiny model in `python -m trainer gateway`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faulty_gateway import untold  # noqa: E402
from tests.gateway_kit import make_scheduler, wait_for, write_base_model, write_rows  # noqa: E402
from tests.reserved_port import reserved_port  # noqa: E402
from trainer.gateway.client import GatewayClient  # noqa: E402
from trainer.gateway.errors import GatewayError  # noqa: E402
from trainer.gateway.gateway import Gateway  # noqa: E402
from trainer.gateway.server import serve  # noqa: E402
from trainer.launch import here  # noqa: E402

_JOBS = {"fake": 6, "real": 2}
_KILLS = 8  # of a round, at most
_LONGEST = {"fake": 300.0, "real": 500.0}  # seconds until all jobs of a round have ended, on a busy machine
_PATIENCE = 120.0  # seconds for a gateway to come up or go
_TIMEOUT = 60.0  # seconds for an answer; that of a killed gateway is not waited for, its connection ends
_ACCOUNT = "accounts/local"


class Killed:
    """A gateway process that is killed and started again on the same folder and port."""

    def __init__(self, home: Path, *, workers: str) -> None:
        self.home, self.workers, self.kills = home, workers, 0
        self._held = ExitStack()
        self.port = self._held.enter_context(reserved_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = self._start()

    def kill(self) -> None:
        """SIGKILL, and up again."""
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self.process = self._start()

    def stop(self) -> None:
        """As a person would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_PATIENCE)
        self._held.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self.workers == "real":
            command = [sys.executable, "-m", "trainer", "gateway", "--port", str(self.port)]
        else:
            command = [sys.executable, __file__, "--serve", str(self.home), "--port", str(self.port)]
            command += ["--workers", self.workers]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRAINER_HOME": str(self.home)}
        with (self.home / "gateway.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def serve_fake(home: Path, port: int, *, scheduler: bool) -> None:
    """A gateway whose workers are fake ones, or that runs no jobs."""
    background = make_scheduler if scheduler else None
    serve(home / "gateway", port=port, background=background)


def jobs_survive(top: Path, *, workers: str, seed: int) -> list[str]:
    """One round: jobs, kills at random moments, and what is there in the end."""
    home, draw = top / f"{workers}-{seed}", random.Random(seed)
    home.mkdir()
    gateway = Killed(home, workers=workers)
    client = GatewayClient(gateway.url, timeout=_TIMEOUT, first_wait=0.1)
    try:
        names = [f"job-{number}" for number in range(_JOBS[workers])]
        base = _inputs(client, home, workers=workers)
        for name in names:
            body = {"dataset": "rows", "baseModel": base, "displayName": "paced", "epochs": 1}
            client.create_job({**body, "outputModel": f"m{name}"}, name)
        longest = time.monotonic() + _LONGEST[workers]
        while not _all_ended(client, names):
            if time.monotonic() > longest:
                return [f"seed {seed}: {_states(client, names)} after {_LONGEST[workers]:.0f} s"]
            if gateway.kills < _KILLS:
                _moment(client, draw, longest=0.5 if workers == "fake" else 4.0)
                gateway.kill()
        client.close()
    finally:
        gateway.stop()
        if sys.exc_info()[0] is not None:
            print((home / "gateway.log").read_text(errors="replace")[-2000:], file=sys.stderr)
    print(f"round {seed}: {gateway.kills} kills", end=", ")
    return [f"seed {seed}: {breach}" for name in names for breach in _checked(home, name)]


def _moment(client: GatewayClient, draw: random.Random, *, longest: float) -> None:
    """Let some time pass: most often since the gateway is up, at times since its process was started."""
    if draw.random() < 0.7:
        wait_for(lambda: _up(client), "the gateway is up", _PATIENCE)
        time.sleep(draw.uniform(0.0, longest))
    else:
        time.sleep(draw.uniform(0.3, 1.5))


def _inputs(client: GatewayClient, home: Path, *, workers: str) -> str:
    wait_for(lambda: _up(client), "the gateway is up", _PATIENCE)
    texts = [("user", f"what is {n}?", "assistant", f"{n} is {n * n}") for n in range(40)]
    rows = [{"messages": [{"role": a, "content": b}, {"role": c, "content": d}]} for a, b, c, d in texts]
    client.upload_dataset(write_rows(home / "rows.jsonl", rows), "rows")
    if workers == "real":
        return "tiny"
    client.upload_model(write_base_model(home / "base"), "base", body={"kind": "HF_BASE_MODEL"})
    return "base"


def _up(client: GatewayClient) -> bool:
    try:
        return bool(client.get(_ACCOUNT))
    except GatewayError:
        return False


def _states(client: GatewayClient, names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = client.get(f"{_ACCOUNT}/supervisedFineTuningJobs/{name}")["state"]
        except GatewayError as error:
            found[name] = error.code
    return found


def _all_ended(client: GatewayClient, names: list[str]) -> bool:
    ends = ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED")
    return all(state in ends for state in _states(client, names).values())


def _checked(home: Path, name: str) -> list[str]:
    """What of the job is not as it must be."""
    found, run, gateway = [], home / name, Gateway(home / "gateway")
    try:
        job = gateway.store.get(f"{_ACCOUNT}/supervisedFineTuningJobs/{name}")
        if job.body["state"] != "JOB_STATE_COMPLETED":
            found.append(f"{name} is {job.body['state']}: {job.body['status']['message'][-600:]}")
        found += untold(gateway, run)
    finally:
        gateway.close()
    events = [json.loads(line) for line in (run / "sync.jsonl").read_bytes().splitlines()]
    began = sum(event["body"].get("state") == "JOB_STATE_VALIDATING" for event in events)
    if began != 1 or [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        found.append(f"{name}: its worker began {began} times, {len(events)} events")
    if job.private["ackedSeq"] != len(events):
        found.append(f"{name}: {job.private['ackedSeq']} of {len(events)} events applied")
    if (run / "attempts.log").exists():
        notes = [line.split()[0] for line in (run / "attempts.log").read_text().splitlines()]
        found += [] if notes == ["began", "ended"] else [f"{name}: its workers: {notes}"]
    worker = here.find(run)
    if worker is not None:  # one that has said its last word takes a moment to go
        wait_for(lambda: not worker.alive, f"the worker of {name} has ended", _PATIENCE)
    models = list((home / "gateway/files/accounts/local/models").glob(f"m{name}*"))
    return found + ([] if len(models) == 1 else [f"{name}: {len(models)} models"])


def creates_survive(top: Path, *, count: int, clients: int, seed: int) -> list[str]:
    """Figure 10, small: what was acknowledged is there, once."""
    home, draw = top / f"creates-{seed}", random.Random(seed)
    home.mkdir()
    gateway = Killed(home, workers="none")
    ended, killing = threading.Event(), list[threading.Thread]()

    def create(client_number: int) -> list[str]:
        with GatewayClient(gateway.url, timeout=_TIMEOUT, first_wait=0.05) as client:
            ids = [f"c{client_number}-{number}" for number in range(count // clients)]
            return [one for one in ids if _created(client, one)]

    def kill() -> None:
        with GatewayClient(gateway.url, timeout=_TIMEOUT, first_wait=0.02) as watch:
            while not ended.wait(draw.uniform(0.2, 1.2)):
                gateway.kill()
                wait_for(lambda: _up(watch), "the gateway is up", _PATIENCE)

    try:
        with GatewayClient(gateway.url, timeout=_TIMEOUT, first_wait=0.1) as client:
            base = _inputs(client, home, workers="fake")
            assert base == "base"
            killing.append(threading.Thread(target=kill))
            killing[0].start()
            with ThreadPoolExecutor(clients) as pool:
                acked = [one for made in pool.map(create, range(clients)) for one in made]
            ended.set()
            killing[0].join()
            wait_for(lambda: _up(client), "the gateway is up", _PATIENCE)
            jobs = client.list("supervisedFineTuningJobs", pageSize=50)
            there = sorted(job["name"].rsplit("/", 1)[-1] for job in jobs)
    finally:
        ended.set()
        for thread in killing:  # it may just be starting another gateway
            thread.join()
        gateway.stop()
    print(f"creates: {len(acked)} acknowledged to {clients} clients, {len(there)} there, {gateway.kills} kills")
    return [] if there == sorted(acked) and len(acked) == count else [f"creates: {len(there)} of {len(acked)} there"]


def _created(client: GatewayClient, job_id: str) -> bool:
    """Create, and again until it is acknowledged."""
    made = False  # by a request whose answer was lost, before this call
    while True:
        try:
            if made:
                return client.find(f"{_ACCOUNT}/supervisedFineTuningJobs/{job_id}") is not None
            client.create_job({"dataset": "rows", "baseModel": "base"}, job_id)
            return True
        except GatewayError as error:
            made = made or error.code == "ALREADY_EXISTS"
            if error.permanent and not made:
                raise


def main() -> int:
    """The rounds, or one gateway process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", choices=("fake", "real", "none"), default="fake")
    parser.add_argument("--creates", type=int, default=200, help="0 = none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_fake(options.serve, options.port, scheduler=options.workers == "fake")
        return 0
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="prove-gateway-kill-") as name:
        for seed in range(options.seed, options.seed + options.rounds):
            began = time.monotonic()
            breaches = jobs_survive(Path(name), workers=options.workers, seed=seed)
            print(f"{len(breaches)} breaches, {time.monotonic() - began:.1f} s", flush=True)
            found += breaches
        if options.creates:
            found += creates_survive(Path(name), count=options.creates, clients=4, seed=options.seed)
    for breach in found:
        print(f"BREACH: {breach}")
    print("nothing lost, nothing run twice" if not found else f"{len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
