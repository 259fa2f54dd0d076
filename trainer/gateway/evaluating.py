"""Evaluators as the gateway knows them: their source, the secrets that they may have, and what a job of theirs leaves.

Secrets reach an evaluator only where the operator has granted their key names (TRAINER_EVALUATOR_SECRETS, a list) and
the account has them: sealed in the job's record, then in variables of its worker that begin with a prefix, then, by the
broker's leave, in the jail.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluators.broker import Broker
from evaluators.judge_desk import JudgeDesk, configured
from trainer import scored_rows
from trainer.evaluation_run import GRANTS_VARIABLE, AnswerSettings, EvaluatorSource, granted_names
from trainer.evaluation_sandbox import JUDGE_VARIABLE
from trainer.gateway import dataset_rows, uploads
from trainer.gateway.errors import GatewayError, precondition
from trainer.gateway.gateway import Gateway
from trainer.gateway.resources import secrets
from trainer.gateway.store import Resource, resources

_WAYS = {"maxOutputTokens": "max_tokens", "temperature": "temperature", "topP": "top_p", "topK": "top_k"}


def granted(gateway: Gateway, parent: str) -> dict[str, str]:
    """The secrets of account `parent` that the operator lets into its evaluators: key name -> value."""
    try:
        names = granted_names(os.environ.get(GRANTS_VARIABLE, ""))
        broker = Broker(lambda name: secret_of(gateway, parent, name), granted=names)
    except ValueError as error:
        raise precondition(f"{GRANTS_VARIABLE} of the gateway: {error}") from error
    if not names:
        return {}
    own = {one.body["keyName"] for one in gateway.store.every("secrets", resources.c.parent == parent)}
    return broker.environment(name for name in names if name in own)


def secret_of(gateway: Gateway, parent: str, key_name: str) -> str | None:
    """The value of the account's secret with that key name; None where there is none."""
    for one in gateway.store.every("secrets", resources.c.parent == parent):
        if one.body["keyName"] == key_name:
            return secrets.value_of(gateway, one.name, parent=parent)
    return None


def judges_key(gateway: Gateway, parent: str) -> str | None:
    """The key of the judge that the account's evaluators may ask; None where there is no judge, or no key."""
    name = os.environ.get(JUDGE_VARIABLE, "")
    return secret_of(gateway, parent, name) if name else None


def desk_of(gateway: Gateway, parent: str) -> JudgeDesk | None:
    """Who answers what the account's evaluators ask in this process; None where the operator has named no judge."""
    name = os.environ.get(JUDGE_VARIABLE, "")
    broker = Broker(lambda key: secret_of(gateway, parent, key), usable=[name] if name else [])
    try:
        return configured(os.environ, broker.spend, redact=broker.redact)
    except ValueError as error:
        raise precondition(f"the settings of the gateway's judge: {error}") from error


def struck(value: Any, values: Sequence[str]) -> Any:
    """`value` without any of the secret `values` in its texts, for what an evaluator has said."""

    def redact(text: str) -> str:
        for secret in values:
            text = text.replace(secret, "[secret]")
        return text

    return scored_rows.struck(value, redact)


def source_of(gateway: Gateway, evaluator: Resource) -> EvaluatorSource:
    """The newest version of `evaluator`, as it can be opened here. Raises FAILED_PRECONDITION where it has no code."""
    body, private = evaluator.body, evaluator.private
    archive = None if body.get("criteria") else _archive(gateway, evaluator)
    return EvaluatorSource(
        name=evaluator.name, version=private.get("version", ""), criteria=body.get("criteria") or [],
        archive=archive and str(archive), entry_point=body.get("entryPoint", ""),
        requirements=body.get("requirements", ""), python=private.get("python"),
    )  # fmt: skip


def answers_of(body: dict[str, Any]) -> AnswerSettings:
    """How the job's model answers. Raises pydantic's ValidationError."""
    given = body.get("inferenceParameters") or {}
    return AnswerSettings.model_validate({own: given[key] for key, own in _WAYS.items() if key in given})


def unused_ways(body: dict[str, Any]) -> list[str]:
    """The fields of `inferenceParameters` that an evaluation's answers do not have."""
    return sorted(set(body.get("inferenceParameters") or {}) - set(_WAYS))


def register(gateway: Gateway, job: Resource, result: dict[str, Any]) -> None:
    """Make the scored rows the job's output data set, READY; the job's own of an earlier attempt is replaced.

    Raises ALREADY_EXISTS for another's, PERMISSION_DENIED for a file that is not of a run's folder.
    """
    name, source = job.body["outputDataset"], Path(result["path"])
    if not gateway.inside(source):
        raise GatewayError("PERMISSION_DENIED", f"the scored rows lie at {source}, outside {gateway.runs}")
    bare = name.rsplit("/", 1)[-1]
    filename = f"{bare}.jsonl"
    body = {
        "displayName": bare, "evaluationResult": {"evaluationJobId": job.id}, "sourceJobName": job.name,
        "createdBy": job.body.get("createdBy", ""), "state": uploads.UPLOADING,
        "status": {"code": "OK", "message": ""},
    }  # fmt: skip
    with gateway.store.transaction() as transaction:
        old = transaction.find(name)
        if old is not None and old.body.get("sourceJobName") != job.name:
            raise GatewayError(
                "ALREADY_EXISTS", f"outputDataset: {name} was made by another meanwhile; delete it, then :resume",
                metadata={"name": name}, retry=False,
            )  # fmt: skip
        if old is not None:
            transaction.delete(name)
        made = transaction.insert(
            Resource(name=name, collection="datasets", parent=job.parent, id=bare, body=body,
                     private={"owner": job.private.get("owner", "")})
        )  # fmt: skip
    digest, size = gateway.files.adopt(name, filename, source), source.stat().st_size
    private = {"files": {filename: {"size": size, "sha256": digest}}, "declared": {filename: size}}
    rows = dataset_rows.check([gateway.files.path(name, filename)], declared=None)
    uploads.finish(gateway, made.changed(private={**private, "rows": rows.format}), rows.body())


def _archive(gateway: Gateway, evaluator: Resource) -> Path:
    source = gateway.store.find(evaluator.private.get("source", ""))
    names = sorted(source.private.get("files", {})) if source is not None else []
    if source is None or not names:
        raise precondition(f"{evaluator.name}: has no source yet; upload it, or give criteria", name=evaluator.name)
    if len(names) > 1:
        raise precondition(
            f"{evaluator.name}: {len(names)} files were uploaded; upload the project as one tar.gz, tar or zip",
            name=evaluator.name,
        )
    return gateway.files.path(source.name, names[0])
