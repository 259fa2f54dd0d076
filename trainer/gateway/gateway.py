"""The gateway of one state folder: its records, its files, its settings; and one call to it.

Several processes may hold a `Gateway` on the same folder at once. Handlers of operations get a `Call`; they neither
know HTTP nor which process they run in. Every name that a call speaks of is read within the caller's account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal

from trainer.gateway.contract import Contract, Operation, load
from trainer.gateway.errors import GatewayError, invalid, not_found
from trainer.gateway.evaluator_builds import Builds
from trainer.gateway.files import FileStore
from trainer.gateway.operations import Operations
from trainer.gateway.principal import LOCAL_ACCOUNT, OWNER, PUBLIC_ACCOUNT, Principal, current
from trainer.gateway.store import Store
from trainer.jobs import RESOURCE_ID, resource_id

ACCOUNT = LOCAL_ACCOUNT
DELETE_STATES = Literal["deleted", "cancelled"]


@dataclass(frozen=True)
class GatewayOptions:
    """What may be set: `price_per_token` in US dollars (0: one's own machine costs nothing to use).

    trainer_delete_state: what a DELETE makes of a trainer, a tombstone ("deleted") or one that can be resumed
    ("cancelled", which some published recipes count on; a trainer that has stopped then stays as it is).
    """

    price_per_token: Decimal = Decimal(0)
    email: str = "local@localhost"
    trainer_delete_state: DELETE_STATES = "deleted"


class Gateway:
    """Records and files of the state folder `folder` (made if absent); runs lie beside it, in `runs`."""

    def __init__(self, folder: Path, *, runs: Path | None = None, options: GatewayOptions | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder.absolute()
        self.runs = (runs or folder.parent).absolute()
        self.options = options or GatewayOptions()
        self.contract: Contract = load()
        self.store = Store(self.folder)
        self.files = FileStore(self.folder)
        self.operations = Operations(self.store)
        self.builds = Builds(self)

    def close(self) -> None:
        """End the work of long-running operations and close the records; the object is of no use afterwards."""
        self.operations.close()
        self.builds.close()
        self.store.close()

    def inside(self, path: Path) -> bool:
        """True when `path`, links followed, lies in the runs' folder or in this gateway's."""
        resolved = path.resolve()
        return any(resolved.is_relative_to(root.resolve()) for root in (self.runs, self.folder))


@dataclass(frozen=True)
class Upload:
    """The file of a multipart request."""

    filename: str
    stream: IO[bytes]


@dataclass
class Call:
    """One request to one operation: its ids, query and body in canonical form.

    unknown: paths of keys that the contract does not know. base_url: what signed URLs begin with. principal: who asks.
    wildcards: whether `-` in the path stands for any id, as lists have it.
    """

    gateway: Gateway
    operation: Operation
    params: Mapping[str, str]
    query: Mapping[str, Any]
    body: dict[str, Any]
    base_url: str
    unknown: list[str] = field(default_factory=list)
    upload: Upload | None = None
    principal: Principal = OWNER
    wildcards: bool = False

    @property
    def account(self) -> str:
        """The caller's account, `accounts/{id}`."""
        return self.principal.account

    def parent(self) -> str:
        """The account in the path. Raises NOT_FOUND for any but the caller's."""
        name = f"accounts/{self.params['account_id']}"
        if name == "accounts/-" and self.wildcards:
            return self.account
        if name != self.account:
            raise not_found(name, f"your account is {self.account}")
        return name


def full_name(value: str, *, collection: str, what: str, account: str | None = None) -> str:
    """`<account>/<collection>/<id>` for an id or a full name; account: None = the caller's.

    Raises INVALID_ARGUMENT naming `what`, and NOT_FOUND for a name of an account that is not the caller's.
    """
    try:
        bare = resource_id(value, collection=collection, what=what)
    except ValueError as error:
        raise invalid(str(error), field=what) from error
    caller = current()
    if not value.startswith("accounts/"):
        return f"{account or (caller.account if caller else ACCOUNT)}/{collection}/{bare}"
    if caller is not None and not value.startswith((f"{caller.account}/", f"{PUBLIC_ACCOUNT}/")):
        raise GatewayError("NOT_FOUND", f"{what}: {value} not found", metadata={"field": what, "name": value})
    return value


def checked_id(value: str, *, what: str) -> str:
    """`value` if it is a resource id. Raises INVALID_ARGUMENT naming `what`."""
    if not RESOURCE_ID.fullmatch(value):
        raise invalid(
            f"{what}: got {value[:80]!r}; expected 1 to 63 of lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit",
            field=what,
        )
    return value


def ready(gateway: Gateway, name: str, *, what: str, way_out: str) -> dict[str, Any]:
    """The body of resource `name` if it is READY. Raises NOT_FOUND or FAILED_PRECONDITION, naming `what` and a way."""
    found = gateway.store.find(name)
    if found is None:
        raise GatewayError("NOT_FOUND", f"{what}: {name} not found; {way_out}", metadata={"field": what, "name": name})
    state = found.body.get("state")
    if state != "READY":
        raise GatewayError(
            "FAILED_PRECONDITION",
            f"{what}: {name} is in state {state}, not READY; "
            "finish its upload (:getUploadEndpoint, PUT, :validateUpload)",
            metadata={"field": what, "name": name},
        )
    return found.body
