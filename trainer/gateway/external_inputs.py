"""Rows that a job reads where they lie: data sets with an `externalUrl`, opened by the secrets that the job names.

What can be known is checked when the job is created: the secrets are there and are credentials, and each is for one of
the job's data sets. The rows are fetched when the job is about to run, by the gateway and not by the worker, and become
files of the job. So no credential is in the run's description, its environment or its log, and what is trained on has
a digest. A data set that is READY has its rows here and is read here, unless the job says how to read them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.gateway import dataset_rows, jobstate
from trainer.gateway.bucket_credentials import credentials_of
from trainer.gateway.buckets import AZURE, S3, scheme_of
from trainer.gateway.errors import GatewayError, invalid, not_found
from trainer.gateway.fetching import Fetcher, Rules, shown
from trainer.gateway.gateway import Gateway, full_name
from trainer.gateway.job_families import Input, JobFamily, family_of, value_at, with_value
from trainer.gateway.resources import external_rows
from trainer.gateway.resources.external_rows import CONFIGS
from trainer.gateway.resources.secrets import value_of
from trainer.gateway.store import Resource
from trainer.jobs import JobState

_SECRET = "credentialsSecret"  # noqa: S105
_FOLDER = "inputs"
_OVER = frozenset({JobState.CANCELLED, JobState.DELETING, JobState.DELETED})


@dataclass(frozen=True)
class Brought:
    """Rows that were fetched: where they are now, and their sha256."""

    path: Path
    sha256: str


def resolved(
    gateway: Gateway, kind: JobFamily, body: dict[str, Any], *, parent: str
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """A new job's `body` with the full names of its secrets, and its data sets that are read where they lie.

    The latter go into the record's `private["elsewhere"]`: field -> {"url", "secret"}. In the body, inputs are full
    names, and configurations have been read by their model. Raises INVALID_ARGUMENT or NOT_FOUND naming the field.
    """
    named: dict[str, str] = {}
    for scheme, field in _configs(gateway, kind).items():
        if body.get(field):
            named[scheme] = _secret(gateway, body[field][_SECRET], scheme, parent=parent)
            body = with_value(body, f"{field}.{_SECRET}", named[scheme])
    external: dict[str, dict[str, str]] = {}
    used = set()
    for one in _data_sets(kind):
        name = value_at(body, one.path)
        found = gateway.store.find(name) if name else None
        if found is None or not external_rows.lie_elsewhere(found):
            continue
        url = found.body["externalUrl"]
        scheme = scheme_of(url)
        if scheme in named or found.body.get("state") != "READY":
            external[one.path] = {"url": url, **({"secret": named[scheme]} if scheme in named else {})}
            used.add(scheme)
    for scheme in named.keys() - used:
        field = CONFIGS[scheme]
        raise invalid(
            f"{field}: no data set of this job has an externalUrl that it opens ({_OPENS[scheme]}); leave it out",
            field=field,
        )
    return body, external


_OPENS = {S3: "s3://bucket/key", AZURE: "az://container@account/key, or that account's https:// name"}


def lacking(gateway: Gateway, job: Resource) -> list[str]:
    """The fields of `job` whose rows are still to be fetched."""
    wanted = job.private.get("elsewhere", {})
    if not wanted:
        return []
    notes = gateway.store.get(job.name).private.get("inputs", {})
    there = {path for path, note in notes.items() if gateway.files.path(job.name, note["file"]).is_file()}
    return sorted(wanted.keys() - there)


def brought(gateway: Gateway, job: Resource, path: str) -> Brought | None:
    """The rows that were fetched for the field `path`; None where it names rows that are here."""
    if path not in job.private.get("elsewhere", {}):
        return None
    note = gateway.store.get(job.name).private.get("inputs", {}).get(path)
    if note is None:
        raise GatewayError("FAILED_PRECONDITION", f"{path}: its rows were not fetched; :resume the job to fetch them")
    return Brought(gateway.files.path(job.name, note["file"]), note["sha256"])


def bring(gateway: Gateway, job: Resource, path: str) -> None:
    """Fetch the rows of the field `path`, check them, and note them as the job's.

    Raises, naming the field: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT, FAILED_PRECONDITION, DEADLINE_EXCEEDED or
    UNAVAILABLE. Nothing is kept then, nor for a job that was cancelled or deleted meanwhile.
    """
    source = job.private["elsewhere"][path]
    scratch = gateway.files.scratch()
    try:
        fetched = Fetcher(Rules.of_gateway(gateway.folder)).download(
            source["url"], scratch, largest=external_rows.LARGEST, seconds=external_rows.SECONDS,
            credentials=_credentials(gateway, job, source),
        )  # fmt: skip
        filename = f"{_FOLDER}/{path.rpartition('.')[2]}-{fetched.sha256[:16]}.jsonl"
        gateway.files.adopt(job.name, filename, scratch)
    except GatewayError as error:
        raise _named(error, path, source, configs=_configs(gateway, family_of(job))) from error
    except OSError as error:
        raise GatewayError(
            "RESOURCE_EXHAUSTED", f"{path}: its rows cannot be kept on this machine: {error.strerror}"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    kept = False
    try:
        _check(gateway, job, path, gateway.files.path(job.name, filename))
        kept = _noted(gateway, job, path, {"file": filename, "sha256": fetched.sha256, "size": fetched.size})
    finally:
        if not kept:
            gateway.files.discard(job.name, filename)


def let_go(gateway: Gateway, job: Resource) -> None:
    """Delete the rows that were fetched for a job that has ended and cannot be resumed."""
    state = jobstate.state_of(job)
    if state.terminal and state not in family_of(job).resumable:
        for note in job.private.get("inputs", {}).values():
            gateway.files.discard(job.name, note["file"])


def _data_sets(kind: JobFamily) -> list[Input]:
    return [one for one in kind.inputs if one.collection == "datasets"]


def _configs(gateway: Gateway, kind: JobFamily) -> dict[str, str]:
    """The fields that such a job has for credentials."""
    known = gateway.contract.schema(kind.schema)["properties"]
    return {scheme: field for scheme, field in CONFIGS.items() if field in known}


def _secret(gateway: Gateway, given: str, scheme: str, *, parent: str) -> str:
    """The full name of the secret, whose value has been seen to be credentials."""
    what = f"{CONFIGS[scheme]}.{_SECRET}"
    name = full_name(given, collection="secrets", what=what, account=parent)
    credentials_of(_value(gateway, name, what, parent=parent), scheme, what=f"{what}: {name}")
    return name


def _value(gateway: Gateway, name: str, what: str, *, parent: str) -> bytes:
    try:
        return value_of(gateway, name, parent=parent).encode()
    except GatewayError as error:
        if error.code == "NOT_FOUND":
            raise not_found(f"{what}: {name}", "create it first (POST .../secrets)") from error
        raise


def _credentials(gateway: Gateway, job: Resource, source: Mapping[str, str]) -> dict[str, str] | None:
    if "secret" not in source:
        return None
    scheme = scheme_of(source["url"])
    what = f"{CONFIGS[scheme]}.{_SECRET}"
    value = _value(gateway, source["secret"], what, parent=job.parent)
    return credentials_of(value, scheme, what=f"{what}: {source['secret']}")


def _named(error: GatewayError, path: str, source: Mapping[str, str], *, configs: Mapping[str, str]) -> GatewayError:
    """The error with the field that it is about before it. configs: the job's fields for credentials."""
    field = configs.get(scheme_of(source["url"]), "")
    if field and error.message.startswith(f"{field}.{_SECRET}"):
        return error
    message = f"{path}: {error.message}"
    if error.code == "PERMISSION_DENIED" and "secret" in source:
        message = f"{field}.{_SECRET}: {source['secret']}: {error.message}"
    elif source["url"].startswith("gs://"):
        message += "; gs:// is read as anybody may read it: for another object give a signed https:// URL"
    elif field and "secret" not in source:
        message += f"; it was asked without credentials: a job can name them in {field}.{_SECRET}"
    return GatewayError(error.code, message, metadata={"field": path})


def _check(gateway: Gateway, job: Resource, path: str, place: Path) -> None:
    """Raises INVALID_ARGUMENT for rows that the job cannot take."""
    one = next(one for one in _data_sets(family_of(job)) if one.path == path)
    data_set = gateway.store.get(value_at(job.body, path), f"{path}: it was there when the job was created")
    declared = data_set.body.get("format", "FORMAT_UNSPECIFIED")
    url = shown(job.private["elsewhere"][path]["url"])
    try:
        rows = dataset_rows.check([place], declared=None if declared == "FORMAT_UNSPECIFIED" else declared)
    except GatewayError as error:
        raise GatewayError(error.code, f"{path}: {url}: {error.message}", metadata={"field": path}) from error
    if rows.format not in one.rows:
        raise invalid(
            f"{path}: {url} holds {rows.format} rows; this job takes {' or '.join(sorted(one.rows))}", field=path
        )


def _noted(gateway: Gateway, job: Resource, path: str, note: dict[str, Any]) -> bool:
    """Whether the rows are the job's now: not where it has ended, or been made anew, meanwhile."""
    with gateway.store.transaction() as transaction:
        found = transaction.find(job.name)
        if found is None or found.create_time != job.create_time or jobstate.state_of(found) in _OVER:
            return False
        transaction.save(found.changed(private={"inputs": {**found.private.get("inputs", {}), path: note}}))
        return True
