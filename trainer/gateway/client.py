"""The gateway's client: the only home of httpx. One class, whether the gateway is remote, on this machine, or inside
this process.

Requests are checked by the contract before they are sent. What may pass (no connection, no answer, 429, 503) is asked
again a few times, never before the gateway's `retry-after`; that is safe because creates carry ids chosen here, reports
carry sequence numbers, and files their digest.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError, decode
from trainer.gateway.files import content_digest, sha256
from trainer.gateway.found import owner_key, running_server
from trainer.gateway.pacing import Backoff, Clock, SystemClock, Waits, retry_after
from trainer.jobs import JOB_KINDS, resource_id
from trainer.report import Event
from trainer.runs import GatewaySettings, gateway_folder

ATTEMPTS = 5
_LONGEST_WAIT = 20.0  # seconds between two attempts; whoever is asked to wait longer is told so instead
_PASSING = frozenset({408, 429, 502, 503, 504})  # answers of a moment, not about the request
_PIECE = 16 << 20  # bytes per request of a download
_CHUNK = 1 << 20
_TIMEOUT = 60.0
_CONNECT_TIMEOUT = 5.0
_REPORT_TIMEOUT = 20.0  # a report is small
# Kind of job -> the operation that takes its reports, and the job's id in its path.
REPORTS = {
    "sft": ("Trainer_ReportJob", "supervised_fine_tuning_job_id"),
    "dpo": ("Trainer_ReportDpoJob", "dpo_job_id"),
}
_OCTETS = {"Content-Type": "application/octet-stream"}
_CHECK_TIMEOUT = 2.0  # seconds that a running server has to say that it is one
_VALIDATION_TIMEOUT = 3600.0  # every row is read, every file's header


class GatewayClient:
    """Speaks to one gateway as one account. Close it, or use it in a `with`.

    timeout: seconds without a sign of life after which a request is given up. clock: for tests.
    A method raises `GatewayError` with the gateway's own code, message and details. While `cut_short` is set, nothing
    is waited for between attempts: the first that fails is the last.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        account: str = "local",
        transport: httpx.BaseTransport | None = None,
        first_wait: float = 0.5,
        timeout: float = _TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}", "X-Api-Key": key} if key else {}
        self.base_url, self.account = base_url.rstrip("/"), account
        self._contract = load()
        self._first_wait = first_wait
        self._ours: bool | None = None
        self._read_timeout = timeout
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT))
        self._report_timeout = min(timeout, _REPORT_TIMEOUT)
        self._clock = clock or SystemClock()
        self.not_before: Waits = {}
        self._draw = random.Random()
        self.cut_short = threading.Event()
        self._http = httpx.Client(base_url=self.base_url, headers=headers, transport=transport, timeout=self._timeout)
        # Signed URLs need no key, and the host that serves them may not be trusted with it.
        self._bare = httpx.Client(base_url=self.base_url, transport=transport, timeout=self._timeout)

    @classmethod
    def in_process(cls, folder: Path, *, account: str = "local") -> GatewayClient:
        """A client of the gateway in `folder` that needs no server: the app runs in this process."""
        from trainer.gateway.in_process import InProcess  # noqa: PLC0415  (the server's libraries, where needed)

        return cls("http://embedded", account=account, transport=InProcess(folder))

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
            try:
                self._send("GET", "/healthz")
            except GatewayError as error:  # a gateway of another make need not have this path
                if error.http_status >= 500 or error.http_status in _PASSING:
                    raise
        return bool(self._ours)

    def call(
        self,
        operation_id: str,
        params: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        longest: float | None = None,
    ) -> dict[str, Any]:
        """Call an operation of the contract; `params` are its path's ids, without the account.

        timeout: seconds without a sign of life. longest: it grows to that from attempt to attempt, for work that may
        be long: a lost answer is noticed soon, and a slow one is had in the end.
        Raises GatewayError INVALID_ARGUMENT before sending when query or body do not fit the contract.
        """
        operation = self._contract.operations[operation_id]
        pairs = [(name, _text(value)) for name, value in (query or {}).items() if value is not None]
        self._contract.query(operation, pairs)
        json = None
        if operation.body is not None:
            json = self._contract.read(operation.body, body or {}, partial=operation.method == "PATCH").value
        url = self._contract.url(operation_id, {"account_id": self.account, **(params or {})})
        return _json(self._send(operation.method, url, params=pairs, json=json, timeout=timeout, longest=longest))

    def get(self, name: str) -> dict[str, Any]:
        """The resource of that full name."""
        return _json(self._send("GET", f"/v1/{name}"))

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
            page = _json(self._send("GET", url, params=[(name, _text(value)) for name, value in pairs.items()]))
            yield from page.get(collection, [])
            token = page.get("nextPageToken", "")
            if not token:
                return

    def delete(self, name: str) -> None:
        """Delete the resource of that full name."""
        self._send("DELETE", f"/v1/{name}")

    def create_job(self, body: Mapping[str, Any], job_id: str | None = None, *, kind: str = "sft") -> dict[str, Any]:
        """Create a job of `kind` (`trainer.jobs.JOB_KINDS`) that the gateway runs.

        With a `job_id` a lost answer does no harm: the job that the lost request has made is found, and returned.
        """
        collection = JOB_KINDS[kind].collection
        one = collection.removesuffix("s")
        try:
            return self.call(f"Gateway_Create{one[0].upper()}{one[1:]}", query={f"{one}Id": job_id}, body=body)
        except GatewayError as error:
            if error.code != "ALREADY_EXISTS" or error.attempts == 1 or job_id is None:
                raise
            found = self.find(f"accounts/{self.account}/{collection}/{job_id}")
            if found is None or not _holds(found, body):
                raise
            return found

    def cancel_job(self, name: str) -> None:
        """Cancel the job of that full name."""
        self._send("POST", f"/v1/{name}:cancel", json={})

    def resume_job(self, name: str) -> dict[str, Any]:
        """Resume the job of that full name."""
        return _json(self._send("POST", f"/v1/{name}:resume", json={}))

    def estimate_cost(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the gateway expects the job to cost: currencyCode, units, nanos."""
        return self.call("Gateway_EstimateSupervisedFineTuningJobCost", body=body)["estimatedCost"]

    def checkpoints(self, job: str) -> list[dict[str, Any]]:
        """The checkpoints of the job of that full name, oldest first."""
        return list(self.list("checkpoints", parent=job))

    def promote(self, checkpoint: str, output_model: str, *, base_model: str | None = None) -> dict[str, Any]:
        """Make a model of a checkpoint, by its full name (.../supervisedFineTuningJobs/{j}/checkpoints/{c})."""
        body = {"outputModel": output_model} | ({"baseModel": base_model} if base_model else {})
        return _json(self._send("POST", f"/v1/{checkpoint}:promote", json=body))["model"]

    def report(
        self, job_id: str, events: Sequence[Event], *, kind: str = "sft", job: Mapping[str, Any] | None = None
    ) -> int:
        """Tell a gateway of ours what happened to job `job_id`; returns the number of the last event it has."""
        body: dict[str, Any] = {"events": [event.model_dump() for event in events]}
        if job is not None:
            body["job"] = dict(job)
        operation_id, param = REPORTS[kind]
        answer = self.call(operation_id, {param: job_id}, body=body, timeout=self._report_timeout)
        if not isinstance(answer.get("ackedSeq"), int):
            raise _garbled(f"no ackedSeq in {str(answer)[:200]}")
        return answer["ackedSeq"]

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
            self._uploaded("Dataset", {"dataset_id": chosen}, {_plain(path.name): path}, name=name)
        return self.get(name)

    def upload_model(self, folder: Path, model_id: str, *, body: Mapping[str, Any]) -> dict[str, Any]:
        """Upload the files of `folder` as model `model_id` (`body`: kind, peftDetails, ...) and return it READY.

        A model that an earlier call with the same files made is taken as it is, and a half-done upload is finished.
        Raises ALREADY_EXISTS when the id belongs to a model with other files.
        """
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if not files:
            raise GatewayError("FAILED_PRECONDITION", f"{folder} holds no files (any more) to upload as {model_id}")
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
            self._uploaded("Model", {"model_id": model_id}, files, name=name)
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
                answer = self._send("GET", url, headers=wanted, client=self._bare, also=416 if received == 0 else None)
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

    def _uploaded(self, kind: str, params: Mapping[str, str], files: Mapping[str, Path], *, name: str) -> None:
        """Send the files and have them checked; once more where a late request has undone what had come."""
        body = {} if kind == "Dataset" else None
        for last in (False, True):
            try:
                self._upload(f"Gateway_Get{kind}UploadEndpoint", params, files)
                self.call(f"Gateway_Validate{kind}Upload", params, body=body, longest=_VALIDATION_TIMEOUT)
                return
            except GatewayError as error:
                if error.code not in ("FAILED_PRECONDITION", "ABORTED"):
                    raise
                if self.get(name).get("state") == "READY":  # made so by a request whose answer did not come
                    return
                if last:
                    raise

    def _upload(self, operation_id: str, params: Mapping[str, str], files: Mapping[str, Path]) -> None:
        sizes = {name: path.stat().st_size for name, path in files.items()}
        body = {"filenameToSize": {name: str(size) for name, size in sizes.items()}}
        urls = self.call(operation_id, params, body=body)["filenameToSignedUrls"]
        for name, path in files.items():
            if self.ours:
                self._put_on(urls[name], path, sizes[name])
            else:
                headers = {
                    "Content-Length": str(sizes[name]),
                    "X-Goog-Content-Length-Range": f"{sizes[name]},{sizes[name]}",
                }
                self._send("PUT", urls[name], file=path, headers=_OCTETS | headers, client=self._bare)

    def _put_on(self, url: str, path: Path, size: int) -> None:
        """Send to a gateway of ours what it does not have of the file; both sides check the whole file's digest.

        As long as each attempt brings it further, it goes on.
        """
        digest, furthest, failures = content_digest(sha256(path)), 0, 0
        backoff = self._backoff()
        while True:
            held = self._held(url, size, digest)
            if held is None:
                return
            failures += 1
            if held > furthest:
                furthest, failures = held, 0
                backoff.reset()
            try:
                headers = _OCTETS | {"Content-Length": str(size - held), "Content-Digest": digest}
                if size:
                    headers["Content-Range"] = f"bytes {held}-{size - 1}/{size}"
                answer = self._once("PUT", url, file=path, start=held, headers=headers, client=self._bare)
                if answer.headers.get("content-digest") != digest:
                    raise _garbled(f"{path.name}: another digest came back than that of the file")
                return
            except GatewayError as error:
                if error.permanent or failures >= ATTEMPTS or not self._pause(backoff.next(error.retry_after)):
                    raise

    def _held(self, url: str, size: int, digest: str) -> int | None:
        """How many bytes of the file the gateway has; None = all of them, and it has checked them."""
        headers = {"Content-Range": f"bytes */{size}", "Content-Digest": digest, "Content-Length": "0"}
        answer = self._send("PUT", url, headers=headers, client=self._bare, also=308)
        if answer.status_code != 308:
            return None
        _, _, last = answer.headers.get("range", "").rpartition("-")
        return int(last) + 1 if last.isdigit() else 0

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
        longest: float | None = None,
        also: int | None = None,
    ) -> httpx.Response:
        """Send, again where that can help, and raise what the gateway complains of; status `also` is no complaint."""
        backoff = self._backoff()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(
                    method, url, params=params, json=json, file=file, headers=headers, client=client, timeout=timeout,
                    also=also,
                )  # fmt: skip
            except GatewayError as error:
                error.attempts = attempt
                if longest and error.code == "DEADLINE_EXCEEDED":
                    timeout = min(2 * (timeout or self._read_timeout), longest)
                passing = error.http_status in _PASSING
                if not passing or attempt == ATTEMPTS or not self._pause(backoff.next(error.retry_after)):
                    raise
        raise AssertionError("the loop above returns or raises")

    def _once(
        self,
        method: str,
        url: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        json: Any = None,
        file: Path | None = None,
        start: int = 0,
        headers: Mapping[str, str] | None = None,
        client: httpx.Client | None = None,
        timeout: float | None = None,
        also: int | None = None,
    ) -> httpx.Response:
        """Send once, when the host allows it again. start: where in `file` to begin."""
        host = httpx.URL(url).host or self.base_url
        self._await_turn(host)
        try:
            answer = (client or self._http).request(
                method, url, params=list(params) or None, json=json, content=_chunks(file, start) if file else None,
                headers=dict(headers or {}), timeout=timeout or self._timeout,
            )  # fmt: skip
        except httpx.TransportError as error:
            late = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
            words = f"{self.base_url} {'did not answer in time' if late else 'cannot be reached'}"
            code = "DEADLINE_EXCEEDED" if late else "UNAVAILABLE"
            raise GatewayError(code, f"{words} ({type(error).__name__}: {error})") from error
        if client is None and ("x-gateway-trainer" in answer.headers or _settled(answer)):
            self._ours = "x-gateway-trainer" in answer.headers
        if answer.is_success or answer.status_code == also:
            return answer
        failure = decode(answer.status_code, answer.content)
        failure.retry_after = retry_after(answer.headers)
        if failure.retry_after:
            self.not_before[host] = self._clock.now() + failure.retry_after
        raise failure

    def _await_turn(self, host: str) -> None:
        """Wait until the host may be asked again; raises RESOURCE_EXHAUSTED when that is too long to wait here."""
        while (left := self.not_before.get(host, 0.0) - self._clock.now()) > 0:
            if left > _LONGEST_WAIT or self._clock.wait(left, self.cut_short):
                raise GatewayError(
                    "RESOURCE_EXHAUSTED", f"{host} asked to be left alone for another {left:.1f} s", retry_after=left
                )

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt; False when it is not to be waited for."""
        return seconds <= _LONGEST_WAIT and not self._clock.wait(seconds, self.cut_short)

    def _backoff(self) -> Backoff:
        return Backoff(self._first_wait, _LONGEST_WAIT, draw=self._draw)


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
        return GatewayClient(url, owner_key(folder), account=settings.account)
    return GatewayClient.in_process(folder, account=settings.account)


def dataset_id_of(path: Path) -> str:
    """The id that file `path` gets as a data set: its name, and the first 8 of its sha256."""
    stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem.lower()).strip("-")[:50].strip("-")
    return resource_id(f"{stem or 'rows'}-{sha256(path)[:8]}", collection="datasets", what=str(path))


def folder_digest(files: Mapping[str, Path]) -> str:
    """One sha256 over names and contents of `files`."""
    lines = (f"{name}\0{sha256(path)}\n" for name, path in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _chunks(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(start)
        while chunk := stream.read(_CHUNK):
            yield chunk


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


def _settled(answer: httpx.Response) -> bool:
    """True when the answer is a gateway's, and not that of something in front of it that has trouble."""
    return answer.status_code < 500 and answer.status_code not in _PASSING


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError as error:
        raise _garbled(f"HTTP {answer.status_code} with a body that is not JSON: {answer.content[:200]!r}") from error
    if not isinstance(value, dict):
        raise _garbled(f"HTTP {answer.status_code} with JSON that is no object: {answer.content[:200]!r}")
    return value


def _garbled(what: str) -> GatewayError:
    return GatewayError("UNAVAILABLE", f"the answer cannot be understood: {what}", described=False)


def _holds(found: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """True when the resource `found` is what a create with `body` makes: names may have become full names."""
    for key, value in body.items():
        same = found.get(key) == value or str(found.get(key)).rpartition("/")[2] == str(value)
        if not same and key != "wandbConfig":
            return False
    return True


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _total(answer: httpx.Response, received: int) -> int:
    """The file's size by Content-Range; a server without ranges has sent all of it."""
    _, _, total = answer.headers.get("content-range", "").rpartition("/")
    return int(total) if total.isdigit() else received
