"""The gateway's client: the only home of httpx. One class, whether the gateway is remote, on this machine, or inside
this process.

Requests are checked by the contract before they are sent. Connection errors, 429 and 503 are asked again a few times;
that is safe because creates carry ids chosen here and reports carry sequence numbers.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError, decode
from trainer.gateway.files import sha256
from trainer.gateway.server import create_app, running_server
from trainer.jobs import resource_id
from trainer.report import Event
from trainer.runs import GatewaySettings, gateway_folder

ATTEMPTS = 5
_LONGEST_WAIT = 20.0  # seconds between two attempts, whatever the gateway asks for
_PIECE = 16 << 20  # bytes per request of a download
_CHUNK = 1 << 20
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_CHECK_TIMEOUT = 2.0  # seconds that a running server has to say that it is one
_VALIDATION_TIMEOUT = 3600.0  # every row is read, every file's header


class GatewayClient:
    """Speaks to one gateway as one account. Close it, or use it in a `with`.

    A method raises `GatewayError` with the gateway's own code, message and details.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        account: str = "local",
        transport: httpx.BaseTransport | None = None,
        first_wait: float = 0.5,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}", "X-Api-Key": key} if key else {}
        self.base_url, self.account = base_url.rstrip("/"), account
        self._contract = load()
        self._first_wait = first_wait
        self._ours: bool | None = None
        self._http = httpx.Client(base_url=self.base_url, headers=headers, transport=transport, timeout=_TIMEOUT)
        # Signed URLs need no key, and the host that serves them may not be trusted with it.
        self._bare = httpx.Client(base_url=self.base_url, transport=transport, timeout=_TIMEOUT)

    @classmethod
    def in_process(cls, folder: Path, *, account: str = "local") -> GatewayClient:
        """A client of the gateway in `folder` that needs no server: the app runs in this process."""
        return cls("http://embedded", account=account, transport=_InProcess(folder))

    def close(self) -> None:
        """Close connections, and the gateway if it is in this process."""
        self._http.close()
        self._bare.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def ours(self) -> bool:
        """True when the gateway is one of this project: it takes reports, and has not to run the job again."""
        if self._ours is None:
            self._send("GET", "/healthz", check=False)
        return bool(self._ours)

    def call(
        self,
        operation_id: str,
        params: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Call an operation of the contract; `params` are its path's ids, without the account.

        Raises GatewayError INVALID_ARGUMENT before sending when query or body do not fit the contract.
        """
        operation = self._contract.operations[operation_id]
        pairs = [(name, _text(value)) for name, value in (query or {}).items() if value is not None]
        self._contract.query(operation, pairs)
        json = None
        if operation.body is not None:
            json = self._contract.read(operation.body, body or {}, partial=operation.method == "PATCH").value
        url = self._contract.url(operation_id, {"account_id": self.account, **(params or {})})
        return self._send(operation.method, url, params=pairs, json=json, timeout=timeout).json()

    def get(self, name: str) -> dict[str, Any]:
        """The resource of that full name."""
        return self._send("GET", f"/v1/{name}").json()

    def find(self, name: str) -> dict[str, Any] | None:
        """The resource of that full name, or None."""
        try:
            return self.get(name)
        except GatewayError as error:
            if error.code == "NOT_FOUND":
                return None
            raise

    def list(self, collection: str, *, parent: str | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """Every resource of `collection` below `parent` (None = the account), page by page.

        query: filter, orderBy, pageSize, readMask.
        """
        above = f"accounts/{self.account}" if parent is None else parent
        url = f"/v1/{above}/{collection}" if above else f"/v1/{collection}"
        token = ""
        while True:
            pairs = {**query, **({"pageToken": token} if token else {})}
            page = self._send("GET", url, params=[(name, _text(value)) for name, value in pairs.items()]).json()
            yield from page.get(collection, [])
            token = page.get("nextPageToken", "")
            if not token:
                return

    def delete(self, name: str) -> None:
        """Delete the resource of that full name."""
        self._send("DELETE", f"/v1/{name}")

    def create_job(self, body: Mapping[str, Any], job_id: str | None = None) -> dict[str, Any]:
        """Create a supervised fine-tuning job that the gateway runs."""
        return self.call(
            "Gateway_CreateSupervisedFineTuningJob", query={"supervisedFineTuningJobId": job_id}, body=body
        )

    def cancel_job(self, name: str) -> None:
        """Cancel the job of that full name."""
        self._send("POST", f"/v1/{name}:cancel", json={})

    def resume_job(self, name: str) -> dict[str, Any]:
        """Resume the job of that full name."""
        return self._send("POST", f"/v1/{name}:resume", json={}).json()

    def estimate_cost(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the gateway expects the job to cost: currencyCode, units, nanos."""
        return self.call("Gateway_EstimateSupervisedFineTuningJobCost", body=body)["estimatedCost"]

    def checkpoints(self, job: str) -> list[dict[str, Any]]:
        """The checkpoints of the job of that full name, oldest first."""
        return list(self.list("checkpoints", parent=job))

    def promote(self, checkpoint: str, output_model: str, *, base_model: str | None = None) -> dict[str, Any]:
        """Make a model of a checkpoint, by its full name (.../supervisedFineTuningJobs/{j}/checkpoints/{c})."""
        body = {"outputModel": output_model} | ({"baseModel": base_model} if base_model else {})
        return self._send("POST", f"/v1/{checkpoint}:promote", json=body).json()["model"]

    def report(self, job_id: str, events: Sequence[Event], *, job: Mapping[str, Any] | None = None) -> int:
        """Tell a gateway of ours what happened to job `job_id`; returns the number of the last event it has."""
        body: dict[str, Any] = {"events": [event.model_dump() for event in events]}
        if job is not None:
            body["job"] = dict(job)
        return self.call("Trainer_ReportJob", {"supervised_fine_tuning_job_id": job_id}, body=body)["ackedSeq"]

    def upload_dataset(self, path: Path, dataset_id: str | None = None) -> dict[str, Any]:
        """Register the rows in file `path` and return the READY data set.

        The default id is made of the file's name and its sha256, so the same file is uploaded once; a half-done
        upload of it is finished.
        """
        chosen = dataset_id or dataset_id_of(path)
        name = f"accounts/{self.account}/datasets/{chosen}"
        found = self.find(name)
        if found is None:
            body = {"datasetId": chosen, "dataset": {"displayName": path.name[:63], "userUploaded": {}}}
            found = self._create("Gateway_CreateDataset", body, name)
        elif dataset_id is not None and found.get("state") == "READY":
            raise GatewayError(
                "ALREADY_EXISTS", f"{name} already exists and is READY; choose another id, or leave it out", retry=False
            )
        if found.get("state") != "READY":
            self._upload("Gateway_GetDatasetUploadEndpoint", {"dataset_id": chosen}, {_plain(path.name): path})
            params = {"dataset_id": chosen}
            self.call("Gateway_ValidateDatasetUpload", params, body={}, timeout=_VALIDATION_TIMEOUT)
        return self.get(name)

    def upload_model(self, folder: Path, model_id: str, *, body: Mapping[str, Any]) -> dict[str, Any]:
        """Upload the files of `folder` as model `model_id` (`body`: kind, peftDetails, ...) and return it READY.

        A model that an earlier call with the same files made is taken as it is, and a half-done upload is finished.
        Raises ALREADY_EXISTS when the id belongs to a model with other files.
        """
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        mark = f"Files {folder_digest(files)[:16]}."
        name = f"accounts/{self.account}/models/{model_id}"
        found = self.find(name)
        if found is None:
            text = f"{body.get('description', '')} {mark}".strip()
            wanted = {"modelId": model_id, "model": {**body, "description": text}}
            found = self._create("Gateway_CreateModel", wanted, name)
        if not str(found.get("description", "")).endswith(mark):
            raise GatewayError(
                "ALREADY_EXISTS", f"{name} already exists with other files; choose another outputModel, or delete it",
                metadata={"name": name}, retry=False,
            )  # fmt: skip
        if found.get("state") != "READY":
            params = {"model_id": model_id}
            self._upload("Gateway_GetModelUploadEndpoint", params, files)
            self.call("Gateway_ValidateModelUpload", params, timeout=_VALIDATION_TIMEOUT)
        return self.get(name)

    def download_dataset(self, name: str, folder: Path) -> Path:
        """Fetch the data set's files into `folder` and return it."""
        self._download("Gateway_GetDatasetDownloadEndpoint", "dataset_id", name, folder)
        return folder

    def download_model(self, name: str, folder: Path) -> Path:
        """Fetch the model's files into `folder` and return it."""
        self._download("Gateway_GetModelDownloadEndpoint", "model_id", name, folder)
        return folder

    def fetch(self, url: str, place: Path) -> Path:
        """Fetch a signed URL into `place`: by pieces, whole or not at all."""
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.partial")
        with partial.open("wb") as stream:
            received, total = 0, None
            while total is None or received < total:
                wanted = {"Range": f"bytes={received}-{received + _PIECE - 1}"}
                answer = self._send("GET", url, headers=wanted, client=self._bare, empty_range=received == 0)
                if answer.status_code == 416:  # an empty file has no first byte
                    break
                stream.write(answer.content)
                received += len(answer.content)
                total = _total(answer, received)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(place)
        return place

    def _create(self, operation_id: str, body: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Create, or find what a create whose answer was lost (or another process) has made."""
        try:
            return self.call(operation_id, body=body)
        except GatewayError as error:
            if error.code != "ALREADY_EXISTS":
                raise
            return self.get(name)

    def _upload(self, operation_id: str, params: Mapping[str, str], files: Mapping[str, Path]) -> None:
        sizes = {name: str(path.stat().st_size) for name, path in files.items()}
        urls = self.call(operation_id, params, body={"filenameToSize": sizes})["filenameToSignedUrls"]
        for name, path in files.items():
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": sizes[name],
                "X-Goog-Content-Length-Range": f"{sizes[name]},{sizes[name]}",
            }
            self._send("PUT", urls[name], file=path, headers=headers, client=self._bare)

    def _download(self, operation_id: str, param: str, name: str, folder: Path) -> None:
        urls = self.call(operation_id, {param: name.rsplit("/", 1)[-1]})["filenameToSignedUrls"]
        for filename, url in urls.items():
            place = folder / filename
            if not place.resolve().is_relative_to(folder.resolve()):
                raise GatewayError(
                    "INVALID_ARGUMENT", f"the gateway named a file {filename!r} outside {folder}: refused"
                )
            self.fetch(url, place)

    def _send(
        self,
        method: str,
        url: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        json: Any = None,
        file: Path | None = None,
        headers: Mapping[str, str] | None = None,
        client: httpx.Client | None = None,
        timeout: float | None = None,
        check: bool = True,
        empty_range: bool = False,
    ) -> httpx.Response:
        """Send, again where that can help, and raise what the gateway complains of."""
        sender, wait = client or self._http, self._first_wait
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = sender.request(
                    method, url, params=list(params) or None, json=json, content=_chunks(file) if file else None,
                    headers=dict(headers or {}), timeout=timeout or _TIMEOUT,
                )  # fmt: skip
            except httpx.TransportError as error:
                failure = GatewayError(
                    "UNAVAILABLE", f"{self.base_url} cannot be reached ({type(error).__name__}: {error})"
                )
                if attempt == ATTEMPTS:
                    raise failure from error
            else:
                if client is None:
                    self._ours = "x-gateway-trainer" in answer.headers
                if answer.is_success or not check or (empty_range and answer.status_code == 416):
                    return answer
                if answer.status_code not in (429, 503) or attempt == ATTEMPTS:
                    raise decode(answer.status_code, answer.content)
                wait = max(wait, _retry_after(answer))
            time.sleep(min(wait, _LONGEST_WAIT))
            wait *= 2
        raise AssertionError("the loop above returns or raises")


def open_client(settings: GatewaySettings) -> GatewayClient | None:
    """The client that the settings ask for; None when no gateway is told.

    embedded: the server that is up on this home's state folder, or else the same gateway inside this process.
    Raises GatewayError when a remote gateway lacks its address or its key.
    """
    if settings.kind == "off":
        return None
    if settings.kind == "remote":
        return _remote(settings)
    folder = gateway_folder()
    url = running_server(folder)
    if url is not None and _healthy(url):
        return GatewayClient(url, account=settings.account)
    return GatewayClient.in_process(folder, account=settings.account)


def dataset_id_of(path: Path) -> str:
    """The id that file `path` gets as a data set: its name, and the first 8 of its sha256."""
    stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem.lower()).strip("-")[:50].strip("-")
    return resource_id(f"{stem or 'rows'}-{sha256(path)[:8]}", collection="datasets", what=str(path))


def folder_digest(files: Mapping[str, Path]) -> str:
    """One sha256 over names and contents of `files`."""
    lines = (f"{name}\0{sha256(path)}\n" for name, path in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


class _AsyncBody(httpx.AsyncByteStream):
    """A request's body, read as the in-process app asks for it."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._body:
            yield chunk


class _InProcess(httpx.BaseTransport):
    """The app of a state folder as a transport: one event loop in a thread of its own runs the requests."""

    def __init__(self, folder: Path) -> None:
        self._app = create_app(folder)
        self._asgi = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded gateway", daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._handle(request), self._loop).result()

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        if isinstance(request.stream, httpx.SyncByteStream):
            request.stream = _AsyncBody(request.stream)
        answer = await self._asgi.handle_async_request(request)
        content = b"".join([part async for part in answer.aiter_raw()])
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._app.state.gateway.close()


def _remote(settings: GatewaySettings) -> GatewayClient:
    if not settings.base_url:
        raise GatewayError(
            "INVALID_ARGUMENT", "gateway.base_url: a remote gateway needs its address; set it, or gateway=embedded"
        )
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise GatewayError(
            "UNAUTHENTICATED",
            f"the environment variable {settings.api_key_env} is not set: it holds the key for {settings.base_url}; "
            "set it, name another one as gateway.api_key_env, or use gateway=embedded",
        )
    return GatewayClient(settings.base_url, key, account=settings.account)


def _healthy(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/healthz", timeout=_CHECK_TIMEOUT)
    except httpx.TransportError:  # the server that wrote the file is gone
        return False
    return answer.is_success and "x-gateway-trainer" in answer.headers


def _plain(name: str) -> str:
    """A local file's name as a gateway takes it."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name).lstrip(".-")
    return clean[-100:].lstrip(".-") or "rows.jsonl"


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _total(answer: httpx.Response, received: int) -> int:
    """The file's size by Content-Range; a server without ranges has sent all of it."""
    _, _, total = answer.headers.get("content-range", "").rpartition("/")
    return int(total) if total.isdigit() else received
