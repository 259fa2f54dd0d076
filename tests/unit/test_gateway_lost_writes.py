"""Writes of the scheduler that fail, or whose answer is lost: no job is forgotten, none is run twice."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating_kit import packed
from tests.family_kit import ask
from tests.gateway_kit import LAUNCHER, A, end_workers, make_scheduler, opened, raw, wait_for
from trainer.gateway import events, scheduler
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.pacing import KeptWaits, SystemClock
from trainer.gateway.scheduler import Scheduler
from trainer.gateway.store import Store, Transaction

NAME = "accounts/local/supervisedFineTuningJobs/j"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_AGAIN_SECONDS", 0.0)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found
        end_workers()


class Losing:
    """A store whose `at`-th writing transaction from now on fails: `before` it is done, or `after`."""

    def __init__(self, store: Store, at: int, when: str) -> None:
        self._store, self._real, self._left, self._when = store, store.transaction, at, when
        store.transaction = self._transaction  # type: ignore[method-assign]

    @property
    def lost(self) -> bool:
        return self._left <= 0

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        outermost = getattr(self._store._held, "transaction", None) is None
        self._left -= outermost
        loses = outermost and self._left == 0
        if loses and self._when == "before":
            raise GatewayError("UNAVAILABLE", "the database went away")
        with self._real() as transaction:
            yield transaction
        if loses:
            raise GatewayError("UNAVAILABLE", "the database went away")


def worked_off(gateway: Gateway, found: Scheduler) -> dict[str, Any]:
    """The job's record, once nobody is at it any more."""

    def ended() -> dict[str, Any] | None:
        try:
            found.tick()
        except GatewayError as error:
            assert error.code == "UNAVAILABLE"
        job = gateway.store.get(NAME)
        over = job.body["state"] in ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED")
        return vars(job) if over and not job.private["run"]["active"] else None

    return wait_for(ended, "the job's end", 60)


# Counted from the job's creation: 3 a look at the queue, 4 the claim, 5 the holder's sign of life, 6 and on the events.
@pytest.mark.parametrize(("at", "when"), [(3, "after"), (4, "after"), (5, "before"), (5, "after"), (6, "before")])
def test_a_job_survives_a_lost_write(both: tuple[GatewayClient, Gateway], tmp_path: Path, at: int, when: str) -> None:
    client, gateway = both
    found = make_scheduler(gateway, beat_seconds=0.1)
    found.recover()
    client.create_job({"dataset": "rows", "baseModel": "base"}, "j")
    losing = Losing(gateway.store, at, when)
    job = worked_off(gateway, found)
    assert losing.lost
    assert (job["body"]["state"], job["private"]["run"]["attempts"]) == ("JOB_STATE_COMPLETED", 1)
    notes = [line.split()[0] for line in (tmp_path / "j/attempts.log").read_text().splitlines()]
    assert notes == ["began", "ended"]
    found.stop()


def test_the_end_of_a_worker_is_written_when_it_can_be(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    found = make_scheduler(gateway)
    found.recover()
    client.create_job({"dataset": "rows", "baseModel": "base", "displayName": "refuse"}, "j")
    settle, times = found._settle, []

    def lost(*arguments: Any) -> None:
        times.append(1)
        if len(times) < 3:
            raise GatewayError("UNAVAILABLE", "the database went away")
        settle(*arguments)
        if len(times) == 3:
            raise GatewayError("UNAVAILABLE", "the database went away, with the answer")

    found._settle = lost  # type: ignore[method-assign]
    job = worked_off(gateway, found)
    found.tick()
    assert (len(times), gateway.store.get(NAME).body["state"]) == (4, "JOB_STATE_FAILED")
    assert job["body"]["status"] == {"code": "INVALID_ARGUMENT", "message": "the rows are no rows"}  # its own words
    found.stop()


def test_a_start_for_which_the_disk_has_no_room_is_tried_again(
    both: tuple[GatewayClient, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gateway = both
    left = [OSError(28, "No space left on device")] * 3

    def start(*arguments: Any, **settings: Any) -> Any:
        if left:
            raise left.pop()
        return LAUNCHER.start(*arguments, **settings)

    found = make_scheduler(gateway)
    monkeypatch.setattr(found, "_launcher", type(LAUNCHER)(**{**vars(LAUNCHER), "start": start}))
    found.recover()
    client.create_job({"dataset": "rows", "baseModel": "base"}, "j")
    for _ in range(2):
        found.tick()
    said = client.get(NAME)
    assert said["state"] in ("JOB_STATE_RE_QUEUEING", "JOB_STATE_PENDING")
    assert "could not be started (OSError: [Errno 28] No space left" in said["status"]["message"]
    job = worked_off(gateway, found)
    assert (job["body"]["state"], job["private"]["run"]["attempts"]) == ("JOB_STATE_COMPLETED", 1)
    found.stop()


def test_what_lasts_is_logged_once(
    both: tuple[GatewayClient, Gateway], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, gateway = both
    found = make_scheduler(gateway)
    found.recover()
    client.create_job({"dataset": "rows", "baseModel": "base"}, "j")

    def away(*_: Any) -> None:
        raise GatewayError("UNAVAILABLE", "the bucket is away")

    monkeypatch.setattr(found, "_admit", away)
    for _ in range(5):
        found.tick()
    assert caplog.text.count("the bucket is away") == 1
    found.stop()


def test_a_file_that_is_shorter_than_its_record_says_is_not_filled_up_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    assert events._append(path, b'{"step": 2}\n', known=1000, cut_from=None) == 24
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1, 2]


def test_waits_that_a_power_cut_has_emptied_are_none(tmp_path: Path) -> None:
    path = tmp_path / "sync_waits.json"
    path.write_bytes(b"")
    assert KeptWaits(path, SystemClock()) == {}


def test_an_upload_that_was_acknowledged_has_its_revision_and_its_build(
    both: tuple[GatewayClient, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gateway = both
    submitted: list[str] = []

    def submit(name: str) -> None:
        assert gateway.store._held.transaction is None  # whoever builds finds it BUILDING
        submitted.append(name)

    monkeypatch.setattr(gateway.builds, "submit", submit)
    for at, when in [(at, when) for at in (1, 2, 3) for when in ("before", "after")]:
        url, content = f"{A}/evaluators/e{at}-{when}", packed({"r.py": "def score(messages): ..."})
        body = {"evaluator": {"entryPoint": "r.py::score"}, "evaluatorId": f"e{at}-{when}"}
        ask(client, "POST", f"{A}/evaluatorsV2", body)
        urls = ask(client, "POST", f"{url}:getUploadEndpoint", {"filenameToSize": {"p.tar.gz": str(len(content))}})
        assert raw(client, "PUT", urls["filenameToSignedUrls"]["p.tar.gz"], content=content).status_code == 200
        real = gateway.store.transaction
        Losing(gateway.store, at, when)
        raw(client, "POST", f"{url}:validateUpload", json={})
        gateway.store.transaction = real  # type: ignore[method-assign]
        ask(client, "POST", f"{url}:validateUpload", {})  # again, as after a lost answer
        versions = [
            one["name"].rsplit("/", 1)[-1] for one in ask(client, "GET", f"{url}/versions")["evaluatorVersions"]
        ]
        found = gateway.store.get(url.removeprefix("/v1/"))
        assert (versions, found.body["state"], found.private["version"]) == (["v1"], "BUILDING", "v1"), (at, when)
    assert sorted(set(submitted)) == sorted(one.name for one in gateway.store.every("evaluators"))
