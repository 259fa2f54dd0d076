"""Revisions of an evaluator: `accounts/A/evaluators/E` names the newest, `.../E/versions/V` that of an id or alias.

An id alone may stand for the full name of the evaluator in either. What has named a revision once keeps it: aliases
move, and newer ones come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.evaluation_run import EvaluatorSource, files_of, requirements_of
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.evaluating import source_of
from trainer.gateway.gateway import Gateway, full_name
from trainer.gateway.store import Resource, Transaction, resources

COLLECTION = "evaluatorVersions"


def split(value: str, *, what: str) -> tuple[str, str]:
    """(evaluator, id or alias of its revision, "" = the newest). Raises INVALID_ARGUMENT naming `what`."""
    evaluator, mark, wanted = value.partition("/versions/")
    if (mark and not wanted) or "@" in value:
        raise invalid(
            f"{what}: got {value[:200]!r}; a revision is named accounts/A/evaluators/E/versions/V, by its id or alias",
            field=what,
        )
    return evaluator, wanted


def named(gateway: Gateway, value: str, *, what: str, parent: str) -> Resource:
    """The ACTIVE revision that `value` names. Raises NOT_FOUND, or FAILED_PRECONDITION with a way out."""
    bare, wanted = split(value, what=what)
    name = full_name(bare, collection="evaluators", what=what, account=parent)
    evaluator = gateway.store.find(name) if name.startswith(f"{parent}/") else None
    if evaluator is None:
        raise _no(what, name, "create it first (POST .../evaluatorsV2)")
    with gateway.store.transaction() as transaction:
        there = all_of(transaction, name)
    found = find(there, wanted or evaluator.private.get("version") or "")
    if wanted and found is None:
        raise _no(what, f"{name}/versions/{wanted}", f"it has {', '.join(one.id for one in there) or 'none'}")
    told = _told(evaluator, found)
    if found is not None and told.get("state") == "ACTIVE":
        return found
    why = (told.get("status") or {}).get("message", "")
    able = [one.name for one in there if _told(evaluator, one).get("state") == "ACTIVE"]
    raise precondition(
        f"{what}: {found.name if wanted and found else name} is in state {told.get('state', 'STATE_UNSPECIFIED')}, not "
        f"ACTIVE{f' ({why})' if why else ''}; upload its source and wait for its build"
        f"{f', or name {able[-1]}' if able else ''}",
        field=what, name=name,
    )  # fmt: skip


def all_of(transaction: Transaction, evaluator: str) -> list[Resource]:
    """All revisions of an evaluator, the oldest first."""
    found = transaction.every(COLLECTION, resources.c.parent == evaluator)
    return sorted(found, key=lambda revision: int(revision.id[1:]))


def find(there: Sequence[Resource], wanted: str) -> Resource | None:
    """The revision of that id or alias."""
    return next((one for one in there if wanted == one.id or wanted in one.body.get("alternateIds", [])), None)


def source_at(gateway: Gateway, revision: Resource) -> EvaluatorSource:
    """The evaluator as it was at a revision. Raises FAILED_PRECONDITION where its packages are no longer here."""
    evaluator = gateway.store.get(revision.parent)
    fields = {key: revision.body["snapshot"].get(key) for key in ("criteria", "entryPoint", "requirements")}
    private = {"version": revision.id, "source": revision.private.get("source")}
    source = source_of(gateway, evaluator.changed(fields, private))
    if evaluator.private.get("version") == revision.id:
        return source
    try:
        python = gateway.builds.python_of(requirements_of(files_of(source)))
    except ValueError as error:
        raise precondition(
            f"{revision.name}: its packages are not installed here any more; :rollback to it builds them again",
            name=revision.name,
        ) from error
    return source.model_copy(update={"python": python})


def _told(evaluator: Resource, revision: Resource | None) -> dict[str, Any]:
    """A revision's state and status; those of the newest are the evaluator's own."""
    if revision is None or evaluator.private.get("version") == revision.id:
        return evaluator.body
    return revision.body["snapshot"]


def _no(what: str, name: str, way_out: str) -> GatewayError:
    return GatewayError("NOT_FOUND", f"{what}: {name} not found; {way_out}", metadata={"field": what, "name": name})
