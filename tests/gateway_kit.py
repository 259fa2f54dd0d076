"""What the gateway's tests share: a gateway on a temporary folder over either transport, and small real inputs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from trainer import __version__
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway
from trainer.gateway.scheduler import Scheduler
from trainer.jobs import Job
from trainer.launch import here
from trainer.runs import (
    DataSettings,
    EngineSettings,
    GatewaySettings,
    Hyperparameters,
    Inputs,
    LaunchSettings,
    LoraSettings,
    ModelSettings,
    RunSpec,
    TrainSettings,
)

ROOT = Path(__file__).resolve().parents[1]
FAKE_WORKER = (sys.executable, str(ROOT / "tests/data/fake_worker.py"))
ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}]} for n in range(3)
]
A = "/v1/accounts/local"


def write_rows(path: Path, rows: list[Any] | None = None) -> Path:
    """A JSONL file of `rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    return path


def safetensors(tensors: dict[str, tuple[str, list[int], int, int]], size: int) -> bytes:
    """A safetensors file: name -> (dtype, shape, start, end), and `size` bytes of data."""
    entries = {name: {"dtype": t[0], "shape": t[1], "data_offsets": [t[2], t[3]]} for name, t in tensors.items()}
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def write_base_model(folder: Path) -> Path:
    """The files of a base model of two numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors({"w": ("F32", [2], 0, 8)}, 8))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    return folder


def make_spec(kind: str, job: Job, run_id: str, inputs: Inputs) -> RunSpec:
    """Defaults for all that the job leaves open."""
    assert kind == "sft"
    return RunSpec(
        id=run_id, kind="sft", created="2026-01-01T00:00:00Z", trainer_version=__version__, job=job,
        model=ModelSettings(name="tiny", path=inputs.base_model), data=DataSettings(), train=TrainSettings(),
        engine=EngineSettings(), launch=LaunchSettings(), gateway=GatewaySettings(), inputs=inputs, objective={},
        hyper=Hyperparameters.of(job, LoraSettings()),
    )  # fmt: skip


STARTED: list[subprocess.Popen[bytes]] = []


def _start(run_folder: Path, **settings: Any) -> subprocess.Popen[bytes]:
    STARTED.append(here.start(run_folder, command=FAKE_WORKER, **settings))
    return STARTED[-1]


LAUNCHER = SimpleNamespace(start=_start, find=here.find, fence=here.fence)


def end_workers() -> None:
    """Stop every fake worker that was started."""
    while STARTED:
        here.stop(STARTED.pop(), grace=1)


def make_scheduler(gateway: Gateway, **settings: Any) -> Scheduler:
    """A scheduler whose workers are fake ones."""
    settings = {"poll": 0.02, "grace": 5.0, "environment": {"PYTHONPATH": str(ROOT)}, **settings}
    return Scheduler(gateway, settings.pop("make_spec", make_spec), launcher=LAUNCHER, **settings)


@cache
def _template() -> Path:
    """A gateway's folder with a base model `base` and a data set `rows`, made once."""
    top = Path(tempfile.mkdtemp(prefix="gateway-template-"))
    atexit.register(shutil.rmtree, top)
    with GatewayClient.in_process(top / "gateway") as client:
        client.upload_model(write_base_model(top / "base"), "base", body={"kind": "HF_BASE_MODEL"})
        client.upload_dataset(write_rows(top / "rows.jsonl"), "rows")
    return top / "gateway"


@contextmanager
def opened(folder: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    """An in-process gateway with a base model `base` and a data set `rows`, both READY."""
    shutil.copytree(_template(), folder)
    with GatewayClient.in_process(folder) as client:
        yield client, client._http._transport._app.state.gateway  # type: ignore[union-attr]


@contextmanager
def served(folder: Path, *arguments: str, keys: bool = False) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real server process on `folder`; its URL. keys: whether it asks for keys."""
    code = (
        "import sys; from pathlib import Path; from trainer.gateway.server import serve\n"
        f"serve(Path(sys.argv[1]), on_ready=lambda url: print(url, flush=True), keys={keys})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", code, str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip(), process
    finally:
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()
            process.stdout.close()


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 120.0) -> Any:
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout} s")


def raw(client: GatewayClient, method: str, url: str, **kwargs: Any) -> httpx.Response:
    """A request as any HTTP client would send it: unchecked, and the answer whatever it is."""
    return client._http.request(method, url, **kwargs)
