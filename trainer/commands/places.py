"""From the names in a job to places on this machine: data sets, base models, adapters to start from.

Rows at a URL are fetched once, here, before the run is described: s3:// and az:// with the credentials of the user's
environment (AWS_*, AZURE_STORAGE_*), https:// and gs:// as anybody may read them.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from trainer import history
from trainer.checkpoints import file_sha256
from trainer.compose import Composed
from trainer.errors import UsageError
from trainer.gateway import buckets
from trainer.gateway.client import GatewayClient, GatewayError
from trainer.gateway.fetching import Fetcher
from trainer.jobs import DpoJob
from trainer.runs import Inputs, RowSource, home, shipped

_RESOURCE = re.compile(r"accounts/[^/]+/(datasets|models)/[^/]+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_WEB = ("https://", "http://", "gs://")
_LARGEST, _SECONDS = 64 << 30, 7200.0  # of rows that are fetched
_DATA_SUFFIXES = {".jsonl", ".json", ".parquet", ".ndjson", ".csv", ".gz", ".txt"}


class Places:
    """Resolves names; `client` opens the gateway when one lives there, and gives None when gateway=off."""

    def __init__(self, client: Callable[[], GatewayClient | None], *, cache: Path | None = None) -> None:
        self._client = client
        self.cache = cache or home() / "cache"

    def inputs(self, composed: Composed) -> Inputs:
        """All inputs of a composed job. Raises `UsageError` naming what cannot be found and where it was sought."""
        job, model = composed.job, composed.model
        train = self.rows(job.dataset, what="job.dataset")
        named = ("data.evaluation", composed.data.evaluation) if isinstance(job, DpoJob) else (
            "job.evaluation_dataset", job.evaluation_dataset
        )  # fmt: skip
        held_out = self.rows(named[1], what=named[0]) if named[1] else None
        if job.warm_start_from:
            adapter = self.adapter(job.warm_start_from)
            base = self.base_of(adapter)
            return Inputs(base_model=base, train=train, evaluation=held_out, warm_start=str(adapter))
        base = job.base_model or ""
        where = model.path if base == model.name else base
        return Inputs(base_model=self.model(where, what="job.base_model"), train=train, evaluation=held_out)

    def rows(self, name: str, *, what: str) -> RowSource:
        """A data set: a gateway's, a local file or folder, the URL of a file, or a hub id."""
        if _RESOURCE.fullmatch(name):
            folder = self._asked(what, name).download_dataset(name, self.cache / "datasets" / name.rsplit("/", 1)[-1])
            return _file_source(name, folder)
        if _URL.fullmatch(name):
            return self._fetched(name, what)
        path = Path(name).expanduser()
        if path.exists():
            return _file_source(name, path.absolute())
        if _HUB_ID.fullmatch(name) and path.suffix not in _DATA_SUFFIXES and not path.parent.exists():
            return RowSource(name=name, path=name)
        raise UsageError(f"{what}: {name!r} is no file, folder, hub id or gateway data set{_neighbours(path)}")

    def _fetched(self, url: str, what: str) -> RowSource:
        """The rows at `url`, kept in the cache by their digest: another run's are not changed."""
        host = url.partition("://")[2].partition("/")[0]
        if "?" in url or (url.startswith(_WEB) and "@" in host):
            raise UsageError(
                f"{what}: the URL at {host.partition('?')[0].rpartition('@')[2]} has a query or a password, which may "
                "be a credential, and the run's description would keep it; download the file and name that"
            )
        scratch = self.cache / "fetched" / secrets.token_hex(8)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        try:
            if url.startswith(_WEB):
                Fetcher().download(url, scratch, largest=_LARGEST, seconds=_SECONDS)
            else:
                buckets.own(url).get("", scratch, largest=_LARGEST)
            sha256 = file_sha256(scratch)
            place = scratch.with_name(sha256[:16]) / url.rpartition("/")[2]
            place.parent.mkdir(exist_ok=True)
            scratch.replace(place)
        except GatewayError as error:
            way = "" if url.startswith(_WEB) else "; your environment's credentials are used (AWS_*, AZURE_STORAGE_*)"
            raise UsageError(f"{what}: {error.message}{way}") from error
        finally:
            scratch.unlink(missing_ok=True)
        return RowSource(name=url, path=str(place), sha256=sha256)

    def model(self, name: str, *, what: str) -> str:
        """A full model: a gateway's, a local folder, or a hub id; as `from_pretrained` takes it."""
        if _RESOURCE.fullmatch(name):
            return str(self._gateway_model(name, what))
        path = Path(name).expanduser()
        if path.is_dir():
            return str(path.absolute())
        if _HUB_ID.fullmatch(name) and not path.parent.exists():
            return name
        raise UsageError(f"{what}: {name!r} is no folder, hub id or gateway model{_neighbours(path)}")

    def adapter(self, name: str) -> Path:
        """The adapter of a warm start: a gateway's model, a run, a checkpoint, or a folder of PEFT files."""
        if _RESOURCE.fullmatch(name):
            folder = self._gateway_model(name, "job.warm_start_from")
        else:
            folder = weights_folder(name, what="job.warm_start_from")
        if not (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"job.warm_start_from: {name!r} is not a LoRA adapter (no adapter_config.json in {folder}); "
                "to go on from a full model give it as job.base_model"
            )
        return folder

    def base_of(self, adapter: Path) -> str:
        """The base model an adapter was trained on."""
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if not base:
            raise UsageError(f"{adapter}: adapter_config.json does not name its base model")
        return self.model(base, what=f"base model of {adapter.name}")

    def _gateway_model(self, name: str, what: str) -> Path:
        identifier = name.rsplit("/", 1)[-1]
        if name == "accounts/local/models/tiny":
            return shipped("models/tiny")
        client = self._asked(what, name)
        try:
            return client.download_model(name, self.cache / "models" / identifier)
        except GatewayError as error:
            raise UsageError(f"{what}: {name}: {error}") from error

    def _asked(self, what: str, name: str) -> GatewayClient:
        client = self._client()
        if client is None:
            raise UsageError(f"{what}: {name} lives in a gateway, and gateway=off; choose gateway=embedded or remote")
        return client


def weights_folder(name: str, *, what: str) -> Path:
    """The folder of model files that a run, a checkpoint or a folder stands for."""
    path = Path(name).expanduser()
    for folder in (path / "weights", path / "model", path):
        if any((folder / one).is_file() for one in ("adapter_config.json", "config.json")):
            return folder.absolute()
    try:
        run = history.find(name)
    except UsageError as error:
        raise UsageError(f"{what}: {name!r} is no folder of model files, no checkpoint and no run ({error})") from error
    if (run / "model").is_dir():
        return run / "model"
    raise UsageError(f"{what}: the run {run.name} has no model yet; name one of its checkpoints in {run}/checkpoints")


def _file_source(name: str, path: Path) -> RowSource:
    return RowSource(name=name, path=str(path), sha256=file_sha256(path) if path.is_file() else None)


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (and there is no folder {path.parent})"
    close = difflib.get_close_matches(
        path.name, [one.name for one in path.parent.iterdir() if one.exists()], n=2, cutoff=0.5
    )
    return f"; did you mean {' or '.join(str(path.parent / one) for one in close)}?" if close else ""
