"""Serve the embedded gateway on this machine, with a scheduler that runs the jobs posted to it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from trainer.compose import for_job
from trainer.errors import UsageError
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.scheduler import Scheduler
from trainer.gateway.server import serve
from trainer.jobs import SupervisedFineTuningJob
from trainer.launch import here
from trainer.runs import Inputs, RunSpec, gateway_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen."""
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; loopback only (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="port; 0 = any free one (default: %(default)s)")


def describe(kind: str, job: SupervisedFineTuningJob, run_id: str, inputs: Inputs) -> RunSpec:
    """The run of a job that came over the wire: the shipped configuration around it."""
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return for_job(kind, job, base_path=inputs.base_model).spec(run_id, inputs, created=created)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""

    def scheduler(gateway: Gateway) -> Scheduler:
        return Scheduler(gateway, describe, launcher=here)

    try:
        serve(gateway_folder(), options.host, options.port, background=scheduler, on_ready=_ready)
    except GatewayError as error:
        raise UsageError(error.message) from error
    return 0


def _ready(url: str) -> None:
    print(f"gateway: {url}", flush=True)
    print(f"state:   {gateway_folder()}", flush=True)
    print(f"clients: FIREWORKS_BASE_URL={url} FIREWORKS_API_KEY=fw_local FIREWORKS_ACCOUNT_ID=local", flush=True)
