"""evaluators: code that scores, uploaded as an archive or given as snippets, in revisions that do not change.

Source lies with a record of its own, so that a revision keeps its source whatever is uploaded later. A revision is made
when source is whole (`:validateUpload`), when snippets are given, when what a build depends on is patched, and by a
rollback, which goes on from an old one. `latest` is always the newest; other aliases are set and moved by hand.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import Any

from trainer.gateway import evaluator_builds, evaluator_revisions, file_names, job_families, standard, uploads
from trainer.gateway.errors import GatewayError, invalid, not_found, precondition
from trainer.gateway.gateway import Call
from trainer.gateway.standard import Family, Handler, new_resource
from trainer.gateway.store import Resource, Transaction, body_value, resources

_SOURCES = "evaluatorSources"
_REBUILD = ("requirements", "entryPoint", "criteria")
_ALIAS = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_REVISION = re.compile(r"v[1-9]\d*")
_WAITING = {"code": "OK", "message": "waits for its source (:getUploadEndpoint, PUT, :validateUpload)"}


def _may_delete(call: Call, evaluator: Resource) -> None:
    with call.gateway.store.transaction() as transaction:
        jobs = job_families.using(transaction, evaluator.name)
    if jobs:
        raise precondition(f"{evaluator.name} is used by {jobs[0]}, which has not ended; cancel or delete that first")


FAMILY = Family(
    collection="evaluators", schema="gatewayEvaluator", param="evaluator_id", may_delete=_may_delete,
    immutable=frozenset({"source"}),
)  # fmt: skip


def _version_shown(_call: Call, version: Resource) -> dict[str, Any]:
    return {**version.body, "name": version.name, "createTime": version.create_time}


VERSIONS = Family(
    collection=evaluator_revisions.COLLECTION,
    schema="gatewayEvaluatorVersion",
    param="version_id",
    present=_version_shown,
)  # fmt: skip


def create(call: Call) -> dict[str, Any]:
    """POST {"evaluator": {...}, "evaluatorId": "..."}; both generations of the method."""
    body = {
        **call.body["evaluator"], "state": "STATE_UNSPECIFIED", "status": _WAITING,
        "createdBy": call.principal.email or call.gateway.options.email,
    }  # fmt: skip
    _check(body)
    new = new_resource(FAMILY, call, given_id=call.body.get("evaluatorId"), what="evaluatorId", body=body)
    with call.gateway.store.transaction() as transaction:
        made = transaction.insert(new)
        if body.get("criteria"):
            made = _revised(call, made)
    return made.shown()


def update(call: Call) -> dict[str, Any]:
    """PATCH: what a build depends on begins another one; `prepareCodeUpload` awaits new source."""
    with call.gateway.store.transaction() as transaction:  # a patch that makes no sense is undone
        old = FAMILY.load(call)
        _patch(call)
        evaluator = FAMILY.load(call)
        _check(evaluator.body)
        if call.query.get("prepareCodeUpload"):
            evaluator = transaction.save(evaluator.changed({"status": _WAITING}, {"pending": None}))
        elif any(evaluator.body.get(key) != old.body.get(key) for key in _REBUILD) and _has_code(evaluator):
            evaluator = _revised(call, evaluator)
    return FAMILY.answer(call, evaluator)


_patch = standard.patch(FAMILY)


def delete(call: Call) -> dict[str, Any]:
    """DELETE of an evaluator, its revisions and their source."""
    with call.gateway.store.transaction() as transaction:
        evaluator = transaction.get(FAMILY.name(call))
        FAMILY.may_delete(call, evaluator)
        sources = transaction.every(_SOURCES, resources.c.parent == evaluator.parent)
        gone = [one.name for one in sources if one.private.get("evaluator") == evaluator.name]
        gone.append(evaluator.name)
        for name in gone:
            uploads.condemn(transaction, name)
    for name in gone:
        uploads.remove(call.gateway, name)
    return {}


def get_upload_endpoint(call: Call) -> dict[str, Any]:
    """Signed PUT URLs for the declared files of the source to come."""
    evaluator = FAMILY.load(call)
    with call.gateway.store.transaction() as transaction:
        source = transaction.find(evaluator.private.get("pending", ""))
        if source is None:
            source = transaction.insert(_new_source(call, evaluator))
            transaction.save(transaction.get(evaluator.name).changed(private={"pending": source.name}))
    return {"filenameToSignedUrls": file_names.declared(call, source)}


def validate_upload(call: Call) -> dict[str, Any]:
    """Source is whole: a revision, and its build. Repeating it does nothing."""
    evaluator = FAMILY.load(call)
    pending = evaluator.private.get("pending")
    if pending is None:
        if _has_code(evaluator):
            return {}
        raise precondition(f"{evaluator.name}: no source was uploaded; ask :getUploadEndpoint for URLs and PUT it")
    source = call.gateway.store.get(pending)
    uploads.complete(call.gateway, source)
    with call.gateway.store.transaction() as transaction:  # the source, its revision, the build's turn: all or none
        uploads.finish(call.gateway, source, {})
        found = transaction.get(evaluator.name)
        found = transaction.save(found.changed(private={"source": pending, "pending": None}))
        _revised(call, found)
    return {}


def source_code(call: Call) -> dict[str, Any]:
    """GET :getSourceCodeSignedUrl: signed URLs of the newest source, or of a revision's (?versionId=, here alone)."""
    evaluator = FAMILY.load(call)
    wanted = call.query.get("versionId")
    found = _version(call, wanted) if wanted else evaluator
    name = found.private.get("source")
    if name is None:
        raise precondition(f"{found.name}: has no uploaded source", name=found.name)
    found = uploads.download_urls(call, call.gateway.store.get(name))
    return {"filenameToSignedUrls": file_names.given(found["filenameToSignedUrls"])}


def build_log(call: Call) -> dict[str, Any]:
    """GET :getBuildLogEndpoint. Raises FAILED_PRECONDITION before the first build."""
    evaluator, files = FAMILY.load(call), call.gateway.files
    if not files.path(evaluator.name, evaluator_builds.BUILD_LOG).is_file():
        raise precondition(
            f"{evaluator.name}: has not been built, there is no log; {evaluator.body['status'].get('message', '')}",
            name=evaluator.name,
        )
    url = files.url("GET", evaluator.name, evaluator_builds.BUILD_LOG, base_url=call.base_url)
    return {"buildLogSignedUri": url}


_list_versions: Handler = standard.list_all(VERSIONS, parent=FAMILY.name)


def list_versions(call: Call) -> dict[str, Any]:
    """GET of the revisions: the newest first, where the client does not say otherwise."""
    order = call.query.get("orderBy") or "createTime desc"
    return _list_versions(replace(call, query={**call.query, "orderBy": order}))


def get_version(call: Call) -> dict[str, Any]:
    """GET of a revision, by its id or an alias."""
    return VERSIONS.answer(call, _version(call))


def delete_version(call: Call) -> dict[str, Any]:
    """DELETE of a revision; of an alias when that is what the name says."""
    wanted, unused = call.params["version_id"], ""
    with call.gateway.store.transaction() as transaction:
        found = _version(call)
        others = found.body.get("alternateIds", [])
        if wanted == "latest" or (found.id == wanted and "latest" in others):
            raise precondition(f"{found.name}: the newest revision stays; roll back to another first", name=found.name)
        if found.id != wanted:
            transaction.save(found.changed({"alternateIds": [one for one in others if one != wanted]}))
        else:
            if going := _scored_by(transaction, found.name):
                raise precondition(f"{found.name} is used by {going}, which has not ended; cancel or delete that first")
            transaction.delete(found.name)
            unused = _unused_source(transaction, found)
    if unused:
        uploads.remove(call.gateway, unused)
    return {}


def _scored_by(transaction: Transaction, revision: str) -> str:
    """A job that has not ended and scores with the revision, or ""."""
    same = body_value(["evaluatorVersion"]).as_string() == revision
    going = transaction.every("evaluationJobs", resources.c.state.in_(job_families.GOING), same)
    return going[0].name if going else ""


def _unused_source(transaction: Transaction, deleted: Resource) -> str:
    """The source that was the deleted revision's alone, taken out of the records; "" where others have it."""
    name = deleted.private.get("source")
    kept = [transaction.get(deleted.parent), *evaluator_revisions.all_of(transaction, deleted.parent)]
    if not name or any(one.private.get("source") == name for one in kept):
        return ""
    uploads.condemn(transaction, name)
    return name


def alias(call: Call) -> dict[str, Any]:
    """POST :alias {"aliasId"}: the alias stands for this revision, and for no other any more."""
    name = call.body["aliasId"]
    if not _ALIAS.fullmatch(name) or _REVISION.fullmatch(name) or name == "latest":
        raise invalid(
            f"aliasId: got {name[:80]!r}; expected lower-case letters, digits, '.', '-' and '_' (not v<number>, not "
            "latest)",
            field="aliasId",
        )
    with call.gateway.store.transaction() as transaction:
        wanted = _version(call)
        for version in evaluator_revisions.all_of(transaction, wanted.parent):
            others = version.body.get("alternateIds", [])
            kept = [one for one in others if one != name] + ([name] if version.name == wanted.name else [])
            if kept != others:
                transaction.save(version.changed({"alternateIds": kept}))
        return _version_shown(call, transaction.get(wanted.name))


def rollback(call: Call) -> dict[str, Any]:
    """POST :rollback: a new revision that is this one again."""
    old = _version(call)
    with call.gateway.store.transaction() as transaction:
        evaluator = transaction.get(old.parent)
        fields = {key: old.body["snapshot"].get(key) for key in (*_REBUILD, "commitHash")}
        private = {"source": old.private.get("source"), "pending": None}
        evaluator = transaction.save(evaluator.changed(fields, private))
        revised = _revised(call, evaluator)
    with call.gateway.store.transaction() as transaction:
        return _version_shown(call, evaluator_revisions.all_of(transaction, revised.name)[-1])


def _revised(call: Call, evaluator: Resource) -> Resource:
    """A new revision of the evaluator as it is, and the beginning of its build."""
    with call.gateway.store.transaction() as transaction:
        evaluator = transaction.get(evaluator.name)
        versions = evaluator_revisions.all_of(transaction, evaluator.name)
        for version in versions:
            if "latest" in (others := version.body.get("alternateIds", [])):
                transaction.save(version.changed({"alternateIds": [one for one in others if one != "latest"]}))
        number = int(versions[-1].id[1:]) + 1 if versions else 1
        snapshot = {key: value for key, value in evaluator.shown().items() if key not in ("state", "status")}
        transaction.insert(
            Resource(
                name=f"{evaluator.name}/versions/v{number}", collection=VERSIONS.collection, parent=evaluator.name,
                id=f"v{number}", body={"snapshot": snapshot, "alternateIds": ["latest"]},
                private={"source": evaluator.private.get("source")},
            )
        )  # fmt: skip
    return evaluator_builds.begin(call.gateway, evaluator, version=f"v{number}")


def _version(call: Call, wanted: str = "") -> Resource:
    evaluator, wanted = FAMILY.load(call), wanted or call.params["version_id"]
    with call.gateway.store.transaction() as transaction:
        versions = evaluator_revisions.all_of(transaction, evaluator.name)
    found = evaluator_revisions.find(versions, wanted)
    if found is not None:
        return found
    raise not_found(f"{evaluator.name}/versions/{wanted}", f"it has {', '.join(one.id for one in versions) or 'none'}")


def _has_code(evaluator: Resource) -> bool:
    return bool(evaluator.private.get("source") or evaluator.body.get("criteria"))


def _new_source(call: Call, evaluator: Resource) -> Resource:
    bare = secrets.token_hex(12)
    return Resource(
        name=f"{call.parent()}/{_SOURCES}/{bare}", collection=_SOURCES, parent=call.parent(), id=bare,
        body={"state": uploads.UPLOADING}, private={"evaluator": evaluator.name},
    )  # fmt: skip


def _check(body: dict[str, Any]) -> None:
    for field, longest in (("displayName", 63), ("description", 999)):
        if len(body.get(field, "")) > longest:
            raise invalid(f"evaluator.{field}: longer than {longest} characters", field=f"evaluator.{field}")
    entry = body.get("entryPoint", "")
    if entry and "::" not in entry:
        raise invalid(
            f"evaluator.entryPoint: got {entry[:80]!r}; expected path::function or module::function",
            field="evaluator.entryPoint",
        )
    if (body.get("source") or {}).get("githubRepositoryName"):
        raise GatewayError(
            "UNIMPLEMENTED", "evaluator.source.githubRepositoryName: source is not fetched from GitHub here; upload it"
        )
