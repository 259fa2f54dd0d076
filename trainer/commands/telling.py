"""Keeps the gateway told about a run while its worker trains: data sets first, then the job and what it reports.

All of it happens in the Syncer's thread, and is tried again while that may help. A gateway that cannot be reached never
fails a run: what it has not heard stays in the run's folder, and `python -m trainer sync` tells it later.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import ValidationError

from trainer.data.json_lines import json_lines
from trainer.data.problem import RowProblem
from trainer.errors import UsageError
from trainer.gateway.client import GatewayClient, open_client
from trainer.gateway.errors import GatewayError
from trainer.gateway.sync import Syncer
from trainer.history import in_short
from trainer.runs import DataSettings, GatewaySettings, RowSource, RunSpec, gateway_folder

_DRAIN_SECONDS = 60.0
_REMOTE = {"base_url": "FIREWORKS_BASE_URL", "account": "FIREWORKS_ACCOUNT_ID"}  # as published clients read them


def add_gateway(parser: argparse.ArgumentParser) -> None:
    """The option that says where names are looked up."""
    where = f"embedded, remote ({' and '.join(_REMOTE.values())} say which) or off"
    parser.add_argument("--gateway", default="embedded", help=f"where names are looked up: {where} (%(default)s)")


def gateway_asked(kind: str) -> GatewaySettings:
    """The gateway that `--gateway` names; where a remote one is, and whose account is meant, the environment says.

    Raises `UsageError`.
    """
    kinds = get_args(GatewaySettings.model_fields["kind"].annotation)
    if kind not in kinds:
        raise UsageError(f"--gateway {kind}: allowed: {', '.join(kinds)}")
    given = {field: os.environ.get(variable, "") for field, variable in _REMOTE.items()} if kind == "remote" else {}
    for field, value in given.items():
        if not value:
            raise UsageError(f"--gateway remote: the environment does not say which; set {_REMOTE[field]}")
    try:
        return GatewaySettings.model_validate({"kind": kind, **given})
    except ValidationError as error:
        raise UsageError(f"--gateway remote, by {' and '.join(_REMOTE.values())}: {in_short(error)}") from error


class Teller:
    """The gateway of one command. `client` opens it at the first need and gives None for gateway=off."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.problems: list[str] = []
        self._client: GatewayClient | None = None
        self._opened = False
        self._syncer: Syncer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the gateway, which others may want to move meanwhile."""
        if self._client is not None:
            self._client.close()

    def client(self) -> GatewayClient | None:
        """The gateway's client. Raises `UsageError` when its address or key is missing."""
        if not self._opened:
            try:
                self._client = open_client(self.settings)
            except GatewayError as error:
                raise UsageError(f"gateway={self.settings.kind}: {error.message}") from error
            except OSError as error:
                raise UsageError(
                    f"gateway={self.settings.kind}: its state in {gateway_folder()} cannot be opened "
                    f"({error.strerror or error}); choose another place by TRAINER_HOME, or gateway=off"
                ) from error
            self._opened = True
        return self._client

    def follow(self, spec: RunSpec, folder: Path) -> None:
        """Begin to register the run's data sets and to tell what the run in `folder` reports."""
        client = self.client()
        if client is None:
            return
        self._syncer = Syncer(
            folder, client, job=lambda: self._registered(spec, client, folder), show=self.problems.append
        )
        self._syncer.start()

    def finish(self) -> list[str]:
        """Tell the rest and close; returns what the gateway could not be told, in words."""
        if self._syncer is not None and not self._syncer.drain(_DRAIN_SECONDS):
            self.problems.append("python -m trainer sync tells it later")
        if self._client is not None:
            self._client.close()
        return self.problems

    def _registered(self, spec: RunSpec, client: GatewayClient, folder: Path) -> dict[str, Any]:
        """The job as the gateway is to have it: local files under the names of the data sets they were uploaded as."""
        job = spec.job.wire()
        for key, source in (("dataset", spec.inputs.train), ("evaluationDataset", spec.inputs.evaluation)):
            if source is not None and key in job and not source.name.startswith("accounts/"):
                job[key] = self._uploaded(source, client, spec.data, folder) or job[key]
        return job

    def _uploaded(self, source: RowSource, client: GatewayClient, data: DataSettings, folder: Path) -> str | None:
        """The name of the data set that `source` was uploaded as; None where the job goes on naming it as it does."""
        path = Path(source.path)
        if path.suffix != ".jsonl" or not path.is_file():
            return None  # a folder, a hub id or another format, which the gateway does not hold
        try:
            if data.columns:
                path = _renamed(path, data.columns, folder / "inputs" / path.name, longest=data.max_row_bytes)
            return str(client.upload_dataset(path)["name"])
        except GatewayError as error:
            if not error.permanent:
                raise
            why = error.message
        except (OSError, ValueError) as error:  # rows that cannot be read: the worker says more about them
            why = f"{type(error).__name__}: {error}"
        problem = f"{source.path} was not registered as a data set: {why}"
        if problem not in self.problems:
            self.problems.append(problem)
        return None


def _renamed(path: Path, columns: dict[str, str], target: Path, *, longest: int) -> Path:
    """A copy of a JSONL file with its columns under the names of the fields that are read from them.

    longest: bytes of a row. Raises `RowProblem` (a ValueError) for a row that is not strict JSON.
    """
    fields = {column: field for field, column in columns.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as copy:
        for number, row in json_lines(path, longest):
            if isinstance(row, RowProblem):
                raise row.at(str(path), number)
            if row is not None:
                renamed = {fields.get(key, key): value for key, value in row.items()}
                copy.write(json.dumps(renamed, ensure_ascii=False) + "\n")
    return target
