"""Long-running operations: begun, told of, ended, cancelled, and not forgotten by a restart."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_kit import A, opened, raw, wait_for
from trainer.gateway import operations
from trainer.gateway.client import GatewayClient
from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError, precondition
from trainer.gateway.gateway import Call, Gateway
from trainer.gateway.holders import COLLECTION, Holder
from trainer.gateway.operations import Running
from trainer.gateway.store import Store, Transaction

URL = f"{A}/operations"


def call(gateway: Gateway) -> Call:
    operation = gateway.contract.operations["Gateway_PromoteCheckpoint"]
    params = {"account_id": "local", "checkpoint_id": "c"}
    return Call(gateway, operation, params, query={}, body={}, base_url="http://embedded")


def done(client: GatewayClient, name: str) -> dict[str, Any]:
    """The operation, once it is done."""
    return wait_for(lambda: found if (found := client.get(name)).get("done") else None, name)


def test_work_ends_in_a_response(tmp_path: Path) -> None:
    goes_on = threading.Event()

    def work(running: Running) -> dict[str, Any]:
        running.tell(statusMessage="half")
        goes_on.wait(60)
        return {"@type": "type.googleapis.com/gateway.Model", "name": "accounts/local/models/m"}

    with opened(tmp_path / "gateway") as (client, gateway):
        began = gateway.operations.start(call(gateway), {"statusMessage": "begun"}, work)
        assert (began["done"], began["metadata"]) == (False, {"statusMessage": "begun"})
        assert load().check_answer("googlelongrunningOperation", began) == []
        told = wait_for(lambda: client.get(began["name"])["metadata"]["statusMessage"] == "half", "half")
        assert told
        refused = raw(client, "DELETE", "/v1/" + began["name"])
        assert (refused.status_code, refused.json()["code"]) == (400, 9)
        goes_on.set()
        ended = done(client, began["name"])
        assert ended["response"]["name"] == "accounts/local/models/m"
        assert "error" not in ended
        assert [one["name"] for one in client.list("operations")] == [began["name"]]
        assert raw(client, "POST", f"/v1/{began['name']}:cancel", json={}).json()["code"] == 9
        assert raw(client, "DELETE", "/v1/" + began["name"]).json() == {}
        assert raw(client, "GET", "/v1/" + began["name"]).status_code == 404


@pytest.mark.parametrize(("error", "code"), [(precondition("not so"), 9), (RuntimeError("the secret"), 13)])
def test_work_ends_in_an_error(tmp_path: Path, error: Exception, code: int, caplog: pytest.LogCaptureFixture) -> None:
    def work(_running: Running) -> dict[str, Any]:
        raise error

    with opened(tmp_path / "gateway") as (client, gateway):
        ended = done(client, gateway.operations.start(call(gateway), {}, work)["name"])
        assert ended["error"]["code"] == code
        assert "the secret" not in str(ended)
        assert ("the secret" in caplog.text) == (code == 13)


def test_work_is_cancelled_at_its_next_word(tmp_path: Path) -> None:
    asked = threading.Event()

    def work(running: Running) -> dict[str, Any]:
        asked.wait(60)
        running.tell(statusMessage="on")
        return {}

    with opened(tmp_path / "gateway") as (client, gateway):
        name = gateway.operations.start(call(gateway), {}, work, exclusive="accounts/local/models/m")["name"]
        with pytest.raises(GatewayError, match=r"ABORTED.*being worked at"):
            gateway.operations.start(call(gateway), {}, work, exclusive="accounts/local/models/m")
        assert raw(client, "POST", f"/v1/{name}:cancel", json={}).json() == {}
        asked.set()
        assert done(client, name)["error"]["code"] == 1


def test_work_of_a_process_that_is_gone_is_ended(tmp_path: Path) -> None:
    goes_on = threading.Event()
    with opened(tmp_path / "gateway") as (client, gateway):
        name = gateway.operations.start(call(gateway), {}, lambda _: {"ok": goes_on.wait(60)})["name"]
        with gateway.store.transaction() as transaction:  # as another process, since ended, would have left it
            transaction.save(transaction.get(name).changed(private={"holder": "another"}))
        assert client.get(name)["error"]["code"] == 10
        goes_on.set()
        gateway.operations.close()
        assert "response" not in client.get(name)


def test_an_end_that_cannot_be_written_is_told_at_the_next_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with opened(tmp_path / "gateway") as (client, gateway):
        model, goes_on = "accounts/local/models/m", threading.Event()
        with monkeypatch.context() as broken:
            name = gateway.operations.start(call(gateway), {}, lambda _: {"ok": goes_on.wait(60)}, exclusive=model)[
                "name"
            ]
            broken.setattr(gateway.operations, "update", full)
            goes_on.set()
            wait_for(lambda: "could not be written" in caplog.text, "the log's word of it")
            wait_for(lambda: name not in gateway.operations._running, "its end")
        gateway.operations.start(call(gateway), {}, lambda _: {}, exclusive=model)  # nobody is at the model any more
        ended = client.get(name)
        assert (ended["done"], ended["error"]["code"]) == (True, 10)
        assert "could not write how it ended" in ended["error"]["message"]


def test_what_a_stopping_gateway_no_longer_begins_is_no_operation_that_runs(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        gateway.operations.close()
        with pytest.raises(GatewayError, match="stopping"):
            gateway.operations.start(call(gateway), {}, lambda _: {})
        assert [one["done"] for one in client.list("operations")] == [True]


def test_only_who_holds_an_operation_ends_it(tmp_path: Path) -> None:
    goes_on, model = threading.Event(), "accounts/local/models/m"
    with opened(tmp_path / "gateway") as (client, gateway):
        other = Gateway(tmp_path / "gateway")
        name = gateway.operations.start(call(gateway), {}, lambda _: {"ok": goes_on.wait(60)}, exclusive=model)["name"]
        assert not other.operations.settled(other.store.get(name)).body["done"]
        with pytest.raises(GatewayError, match=r"ABORTED.*being worked at"):
            other.operations.start(call(other), {}, lambda _: {}, exclusive=model)
        descriptor, gateway.operations._holder._descriptor = gateway.operations._holder._descriptor, None
        assert descriptor is not None
        os.close(descriptor)  # as the system does when the process is killed
        ended = other.operations.settled(other.store.get(name))
        assert (ended.body["done"], ended.body["error"]["code"]) == (True, 10)
        goes_on.set()
        other.close()
        assert client.get(name)["error"]["code"] == 10


def test_an_end_is_written_when_the_records_are_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_WAITS", (0.0, 0.0, 0.0))
    with opened(tmp_path / "gateway") as (client, gateway):
        update, left = gateway.operations.update, [GatewayError("UNAVAILABLE", "away")] * 3

        def away(name: str, **changes: Any) -> None:
            if left:
                raise left.pop()
            update(name, **changes)

        monkeypatch.setattr(gateway.operations, "update", away)
        name = gateway.operations.start(call(gateway), {}, lambda _: {"ok": True})["name"]
        assert done(client, name)["response"] == {"ok": True}


def test_a_holder_that_could_not_be_known_is_so_at_the_next_try_and_dead_ones_are_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for lost in ("before", "after"):  # the answer, or all of it
        dead, holder, real = Holder(store), Holder(store), store.transaction
        dead.begin()
        os.close(dead._descriptor or 0)

        @contextmanager
        def away(lost: str = lost, real: Any = real) -> Iterator[Transaction]:
            if lost == "before":
                raise GatewayError("UNAVAILABLE", "away")
            with real() as transaction:
                yield transaction
            raise GatewayError("UNAVAILABLE", "away")

        store.transaction = away  # type: ignore[method-assign]
        with pytest.raises(GatewayError):
            holder.begin()
        store.transaction = real  # type: ignore[method-assign]
        holder.begin()
        assert [one.id for one in store.every(COLLECTION)] == [holder.id]
        assert [path.name for path in (tmp_path / COLLECTION).iterdir()] == [f"{holder.id}.lock"]
        holder.end()
    store.close()
