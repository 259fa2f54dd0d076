"""Filters (AIP-160) and orders: what they find, what they refuse, and that nothing of them becomes SQL."""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.filter_kit import COLLECTION, PARENT, SCHEMA, fill, random_filter, recorded, strange_words
from tests.postgres_kit import Cluster, binaries
from trainer.gateway.database import STORE_VARIABLE
from trainer.gateway.errors import GatewayError
from trainer.gateway.filter_sql import condition
from trainer.gateway.filters import DEEPEST, LONGEST, MOST_TERMS, And, Not, Or, Restriction, Value, parse
from trainer.gateway.gateway import Gateway
from trainer.gateway.listing import listed
from trainer.gateway.store import Resource


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for this gateway alone: others are opened while it is there
            if request.param == "postgresql":
                place = binaries()
                if place is None:
                    pytest.skip("no PostgreSQL server (initdb, postgres) on this machine")
                cluster = Cluster(place)
                stack.callback(cluster.remove)
                patch.setenv(STORE_VARIABLE, cluster.database())
            found = Gateway(tmp_path_factory.mktemp("filters") / "gateway")
        stack.callback(found.close)
        fill(found)
        yield found


def found(gateway: Gateway, text: str, order: str = "name", **query: Any) -> str:
    page = listed(
        gateway, SCHEMA, collection=COLLECTION, parent=PARENT, query={"filter": text, "orderBy": order, **query}
    )
    assert page.total >= len(page.resources)
    return "".join(one.id for one in page.resources)


def restriction(path: str, operator: str, value: str, quoted: bool = False) -> Restriction:
    return Restriction(tuple(path.split(".")), operator, Value(value, quoted))


def test_or_binds_tighter_than_and() -> None:
    a, b, c = (restriction(name, "=", "1") for name in "abc")
    assert parse("a=1 AND b=1 OR c=1") == And([a, Or([b, c])])
    assert parse("a=1 OR b=1 AND c=1") == And([Or([a, b]), c])
    assert parse("a=1 b=1") == And([a, b])
    assert parse("NOT a=1 OR b=1") == Or([Not(a), b])
    assert parse("-a=1 AND -(b=1)") == And([Not(a), Not(b)])
    assert parse("(a=1 AND b=1) OR c=1") == Or([And([a, b]), c])
    assert parse(" \t\n") is None


def test_what_values_and_paths_may_be() -> None:
    assert parse("a.b=-3") == restriction("a.b", "=", "-3")
    assert parse('a="x \\"y\\" \\\\"') == restriction("a", "=", 'x "y" \\', quoted=True)
    assert parse("t>=2026-01-31T12:00:00.5+02:00") == restriction("t", ">=", "2026-01-31T12:00:00.5+02:00")
    assert parse('labels."a.b"=1') == Restriction(("labels", "a.b"), "=", Value("1", quoted=False))
    assert parse("state%3DREADY") == restriction("state", "=", "READY")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "abcd"),
        ("state=JOB_STATE_RUNNING", "a"),
        ("state != JOB_STATE_RUNNING", "bcd"),
        ("state=JOB_STATE_UNSPECIFIED", "d"),
        ("NOT state=JOB_STATE_RUNNING AND epochs>0", "bc"),
        ('displayName="Alpha one"', "a"),
        ('display_name="alpha one"', ""),
        ('displayName="Alpha*"', "a"),
        ('displayName="*two"', "b"),
        ('displayName="*%_*"', "b"),
        ('displayName="*%*"', "b"),
        ('displayName="B*o"', "b"),
        ('displayName!="*a*"', "d"),
        ("displayName:one", "a"),
        ('displayName="say \\"hi\\" \\\\ there"', "c"),
        ("displayName:*", "abc"),
        ("-displayName:*", "d"),
        ("epochs>1", "bc"),
        ("epochs>=2 epochs<10", "c"),
        ("epochs=0", "d"),
        ("learningRate>0.5", "b"),
        ("learningRate=2.25 OR learningRate=0.5", "ab"),
        ("earlyStop=true", "a"),
        ("earlyStop=false", "bcd"),
        ("earlyStop!=false", "a"),
        ("completedTime>2026-03-01T12:00:00Z", "b"),
        ('completedTime>="2026-03-01T13:00:00+01:00"', "ab"),
        ("NOT completedTime<2026-04-01T00:00:00Z", "bcd"),
        ("wandbConfig.project=p", "a"),
        ("wandb_config.project=q", "b"),
        ("wandbConfig.enabled=true", "a"),
        ("wandbConfig:*", "ab"),
        ("estimatedCost.units=9007199254740993", "b"),
        ("estimatedCost.units>9007199254740992", "b"),
        ("name=accounts/local/supervisedFineTuningJobs/c", "c"),
        ('name="*/d"', "d"),
        ("createTime>2026-01-01T00:00:00Z", "abcd"),
        ("(epochs=1 OR epochs=2) AND NOT state=JOB_STATE_FAILED", "a"),
        ("epochs=1 OR epochs=2 state=JOB_STATE_FAILED", "c"),
    ],
)
def test_what_is_found(gateway: Gateway, text: str, names: str) -> None:
    assert found(gateway, text) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nosuch=1", "'nosuch' is not a field"),
        ("wandbConfig.nosuch=1", "wandbConfig has no 'nosuch'"),
        ("epochs.x=1", "not a field"),
        ("epochs=one", "epochs is an integer; got 'one'"),
        ("epochs=1.5", "integer"),
        ("epochs=9223372036854775808", "integer"),
        ("learningRate=1e999", "is a number"),
        ("earlyStop=maybe", "true or false"),
        ("earlyStop>true", "= or !="),
        ("state=SHINY", "JOB_STATE_RUNNING"),
        ("state<JOB_STATE_RUNNING", "= or !="),
        ("completedTime>yesterday", "a time such as"),
        ("completedTime=2026-02-30T00:00:00Z", "a time such as"),
        ("wandbConfig=1", "is a message; only ':'"),
        ("wandbConfig:x", "wandbConfig:*"),
        ('displayName="a*b*c"', "too many '*'"),
        ("state", "stands alone"),
        ("running jobs", "stands alone"),
        ("f(x)", "functions such as 'f(x)'"),
        ("state=", "ends where a value"),
        ("state=a AND", "ends where a comparison"),
        ("state=(a OR b)", "field=a OR field=b"),
        ("(state=a", "')'"),
        ("state=a)", "')' is not expected at character 7"),
        ('state="a', "cannot read"),
        ("a..b=1", "empty part"),
        ("state=\0", "NUL"),
        ("(" * (DEEPEST + 2) + "a=1" + ")" * (DEEPEST + 2), "deep"),
        ("epochs=1 " * (MOST_TERMS + 1), f"more than {MOST_TERMS}"),
        ('displayName="' + "x" * LONGEST + '"', f"at most {LONGEST}"),
    ],
)
def test_what_is_refused(gateway: Gateway, text: str, says: str) -> None:
    with pytest.raises(GatewayError) as caught:
        found(gateway, text)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.message.startswith("filter: ")
    assert says in caught.value.message
    assert caught.value.details[0]["metadata"] == {"field": "filter"}


def test_maps_and_lists(gateway: Gateway) -> None:
    bodies = {
        "one": {"annotations": {"team": "red", "a.b": "1"}, "supportedDraftModels": ["x", "y"]},
        "two": {"annotations": {"team": "blue"}, "supportedDraftModels": ["y"]},
        "three": {},
    }
    schema = {
        "type": "object",
        "properties": {
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            "supportedDraftModels": {"type": "array", "items": {"type": "string"}},
        },
    }
    with gateway.store.transaction() as transaction:
        for bare, body in bodies.items():
            transaction.insert(Resource(name=f"m/things/{bare}", collection="things", parent="m", id=bare, body=body))
    for text, names in {
        "annotations:team": {"one", "two"},
        "annotations.team=red": {"one"},
        'annotations."a.b"=1': {"one"},
        "NOT annotations:team": {"three"},
        "supportedDraftModels:y": {"one", "two"},
        "supportedDraftModels:x": {"one"},
        "NOT supportedDraftModels:x": {"two", "three"},
        "supportedDraftModels:*": {"one", "two"},
    }.items():
        page = listed(gateway, schema, collection="things", parent="m", query={"filter": text})
        assert {one.id for one in page.resources} == names, text
    with pytest.raises(GatewayError, match="cannot be asked for"):
        condition(gateway.contract, schema, 'annotations."a\'"=1')


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("name desc", "dcba"),
        ("epochs", "dacb"),
        ("epochs desc", "bcad"),
        ("dataset desc, name", "cdba"),
        ("dataset desc, epochs", "dcba"),
        ("early_stop desc, learningRate", "acdb"),
        ("estimatedCost.units desc", "bdca"),
        ("createTime", "abcd"),
        ("wandbConfig.project desc,displayName desc", "bacd"),
    ],
)
def test_orders_and_their_pages(gateway: Gateway, order: str, names: str) -> None:
    assert found(gateway, "", order) == names
    token, one_by_one = "", ""
    while True:
        query = {"orderBy": order, "pageSize": 1, "pageToken": token}
        page = listed(gateway, SCHEMA, collection=COLLECTION, parent=PARENT, query=query)
        one_by_one += "".join(one.id for one in page.resources)
        token = page.next_page_token
        if not token:
            break
    assert one_by_one == names


@pytest.mark.parametrize(
    "order", ["nosuch", "epochs sideways", "wandbConfig", "name,,name", "a b c", "x" * 20_000, ",".join(["name"] * 6)]
)
def test_orders_that_are_none(gateway: Gateway, order: str) -> None:
    with pytest.raises(GatewayError, match="orderBy: "):
        found(gateway, "", order)


@pytest.mark.parametrize(
    "token", ["zzz", "W10", "bnVsbA", "WyJhIiwgMSwgMl0", "e30", "é", "W" * 20_000, "W1tbW1tbW1tbW1tb", "\0"]
)
def test_tokens_that_are_none(gateway: Gateway, token: str) -> None:
    with pytest.raises(GatewayError, match=r"pageToken: (not a token|belongs to another)"):
        found(gateway, "", pageToken=token)


def test_a_list_read_while_others_write_has_all_that_stayed(tmp_path: Path) -> None:
    """Figure 19 in small: between any two pages records come and go."""
    draw = random.Random(1)
    gateway = Gateway(tmp_path / "gateway")
    staying = [f"s-{number:03}" for number in range(60)]

    def put(bare: str) -> None:
        with gateway.store.transaction() as transaction:
            name = f"p/things/{bare}"
            body = {"epochs": len(bare)}
            transaction.insert(Resource(name=name, collection="things", parent="p", id=bare, body=body))

    for bare in staying:
        put(bare)
    for order in ("name", "name desc", "createTime", "epochs desc, name"):
        token, seen, passing = "", [], set()
        while True:
            query = {"orderBy": order, "pageSize": 7, "pageToken": token}
            page = listed(gateway, SCHEMA, collection="things", parent="p", query=query)
            seen += [one.id for one in page.resources]
            token = page.next_page_token
            if not token:
                break
            for _ in range(5):
                passing.add(bare := f"s-{draw.randrange(60):03}-{draw.getrandbits(32)}")
                put(bare)
            with gateway.store.transaction() as transaction:
                transaction.delete(f"p/things/{passing.pop()}")
        assert len(seen) == len(set(seen))
        assert set(staying) <= set(seen)
    gateway.close()


@pytest.mark.slow
def test_a_thousand_lists_while_ten_write(tmp_path: Path) -> None:
    """Figure 19: ten threads insert and delete while lists are read, page by page, in several orders."""
    gateway, stop = Gateway(tmp_path / "gateway"), threading.Event()
    staying = {f"s-{number:03}" for number in range(40)}

    def put(bare: str) -> None:
        with gateway.store.transaction() as transaction:
            body = {"epochs": len(bare), "displayName": bare[-1]}
            name = f"p/things/{bare}"
            transaction.insert(Resource(name=name, collection="things", parent="p", id=bare, body=body))

    def write(number: int) -> None:
        draw = random.Random(number)
        while not stop.wait(0.005):
            put(bare := f"s-{draw.randrange(40):03}-{draw.getrandbits(40)}")
            with gateway.store.transaction() as transaction:
                transaction.delete(f"p/things/{bare}")

    for bare in staying:
        put(bare)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    orders = ("name", "name desc", "createTime desc", "epochs, name desc", "displayName desc, epochs")
    try:
        for run in range(1000):
            token, seen = "", []
            while True:
                query = {"orderBy": orders[run % len(orders)], "pageSize": 9, "pageToken": token}
                page = listed(gateway, SCHEMA, collection="things", parent="p", query=query)
                seen += [one.id for one in page.resources]
                token = page.next_page_token
                if not token:
                    break
            assert len(seen) == len(set(seen)), orders[run % len(orders)]
            assert staying <= set(seen), orders[run % len(orders)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        gateway.close()


def test_random_filters_end_in_an_answer_or_a_refusal(gateway: Gateway) -> None:
    """Figure 40; scripts/prove_filters.py does it a hundred thousand times."""
    draw = random.Random(40)
    count = 2000 if gateway.store.database.engine.dialect.name == "sqlite" else 500
    answered = 0
    with recorded(gateway) as statements:
        for _ in range(count):
            text = random_filter(draw)
            try:
                found(gateway, text)
                answered += 1
            except GatewayError as error:
                assert error.code == "INVALID_ARGUMENT", text
    strange = set().union(*map(strange_words, statements))
    assert strange == set()
    assert answered > count // 20
