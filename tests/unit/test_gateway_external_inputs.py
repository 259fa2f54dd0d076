"""Jobs that read rows where they lie: S3 and Azure with real servers that ask for keys, and the web."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.bucket_kit import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    azure_server,
    azurite,
    has_moto,
    lock_s3,
    s3_client,
    s3_server,
    sas,
)
from tests.evaluating_kit import LENGTH, answered, snippet
from tests.family_kit import ask, refused
from tests.gateway_kit import ROWS, A, end_workers, make_scheduler, opened, raw, wait_for
from trainer.gateway import evaluating_plans
from trainer.gateway.capacity import Capacity
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.external_inputs import bring, lacking
from trainer.gateway.gateway import Gateway
from trainer.gateway.row_fetches import RowFetches
from trainer.gateway.scheduler import Scheduler

JOBS = f"{A}/supervisedFineTuningJobs"
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
S3_FIELD, AZURE_FIELD = "awsS3Config", "azureBlobStorageConfig"


class S3:
    """A server whose bucket `mine` only the keys open. endpoint: its URL."""

    def __init__(self, environment: dict[str, str]) -> None:
        s3_client(environment).create_bucket(Bucket="mine")
        self.keys = lock_s3(environment)
        self.endpoint = environment["AWS_ENDPOINT_URL_S3"]
        self._client = s3_client(environment, self.keys)
        self.put("rows.jsonl", CONTENT)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="mine", Key=key, Body=content)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    with s3_server() as environment:
        yield S3(environment)


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, to which the operator sends s3:// URLs; the gateway's own keys do not open it."""
    for name, value in (("ENDPOINT_URL_S3", server.endpoint), ("ACCESS_KEY_ID", "own"), ("SECRET_ACCESS_KEY", "own")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return server


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found
        end_workers()


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


@pytest.fixture
def scheduler(both: tuple[GatewayClient, Gateway]) -> Iterator[Scheduler]:
    found = make_scheduler(both[1])
    found._rows = RowFetches(both[1], pause=0.01)
    found.start()
    yield found
    found.stop()


def secret(client: GatewayClient, name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return ask(client, "POST", f"{A}/secrets", {"name": name, "keyName": "CREDENTIALS", "value": text})["name"]


def data_set(client: GatewayClient, name: str, url: str, **body: Any) -> None:
    made = ask(client, "POST", f"{A}/datasets", {"dataset": {"externalUrl": url, **body}, "datasetId": name})
    assert (made["state"], made["externalUrl"]) == ("UPLOADING", url)


def create(client: GatewayClient, job_id: str, **fields: Any) -> dict[str, Any]:
    body = {"dataset": "there", "baseModel": "base", **fields}
    return ask(client, "POST", f"{JOBS}?supervisedFineTuningJobId={job_id}", body)


def until(client: GatewayClient, job_id: str, *states: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        job = ask(client, "GET", f"{JOBS}/{job_id}")
        return job if job["state"].removeprefix("JOB_STATE_") in states else None

    return wait_for(reached, f"{job_id} in {states}")


def ended(client: GatewayClient, job_id: str) -> tuple[str, str, str]:
    """State, code and message of a job that has ended."""
    job = until(client, job_id, "COMPLETED", "FAILED")
    return job["state"].removeprefix("JOB_STATE_"), job["status"]["code"], job["status"].get("message", "")


@pytest.mark.usefixtures("scheduler")
def test_rows_in_a_bucket_are_read_with_the_job_s_keys(
    both: tuple[GatewayClient, Gateway], s3: S3, tmp_path: Path
) -> None:
    client, gateway = both
    s3.put("held/out.jsonl", CONTENT * 2)
    name = secret(client, "keys", s3.keys)
    data_set(client, "there", "s3://mine/rows.jsonl", format="CHAT")
    data_set(client, "out", "s3://mine/held/out.jsonl")
    made = create(client, "j", awsS3Config={"credentialsSecret": "keys"}, evaluationDataset="out", displayName="slow")
    assert made[S3_FIELD] == {"credentialsSecret": name}
    assert "estimatedCost" not in made  # nobody has read the rows
    until(client, "j", "RUNNING", "FAILED")
    spec = json.loads((tmp_path / "j/run.json").read_text())
    for source, content in (("train", CONTENT), ("evaluation", CONTENT * 2)):
        assert Path(spec["inputs"][source]["path"]).read_bytes() == content
    note = gateway.store.get(made["name"]).private["inputs"]["dataset"]
    assert (spec["inputs"]["train"]["sha256"], note["size"]) == (note["sha256"], len(CONTENT))
    assert spec["inputs"]["train"]["name"] == "accounts/local/datasets/there"
    assert spec["job"]["awsS3Config"] == {"credentialsSecret": name}
    ask(client, "POST", f"{JOBS}/j:cancel", {})
    until(client, "j", "CANCELLED")
    for path in tmp_path.rglob("*"):  # now that nobody writes there any more
        if path.is_file():
            assert s3.keys["aws_secret_access_key"].encode() not in path.read_bytes(), path
    ask(client, "DELETE", f"{JOBS}/j")
    assert not Path(spec["inputs"]["train"]["path"]).exists()
    assert ask(client, "GET", f"{A}/datasets/there")["state"] == "UPLOADING"


@pytest.mark.usefixtures("scheduler")
def test_what_was_fetched_goes_with_a_job_that_is_done(client: GatewayClient, s3: S3, tmp_path: Path) -> None:
    secret(client, "keys", {**s3.keys, "region": "us-east-1"})
    data_set(client, "there", "s3://mine/rows.jsonl")
    create(client, "j", awsS3Config={"credentialsSecret": "accounts/local/secrets/keys"})
    assert ended(client, "j")[0] == "COMPLETED"
    path = Path(json.loads((tmp_path / "j/run.json").read_text())["inputs"]["train"]["path"])
    wait_for(lambda: not path.exists(), "the rows are gone")


CHOSEN = {"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "good"}]}
REJECTED = {"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "bad"}]}


def fetched(gateway: Gateway, job_id: str) -> tuple[str, str]:
    """Code and message of the error in which fetching the job's data set ends."""
    job = gateway.store.get(f"accounts/local/supervisedFineTuningJobs/{job_id}")
    with pytest.raises(GatewayError) as caught:
        bring(gateway, job, "dataset")
    assert lacking(gateway, job) == ["dataset"]
    assert gateway.files.names(job.name) == []
    return caught.value.code, caught.value.message


def test_each_failure_names_its_field(both: tuple[GatewayClient, Gateway], s3: S3) -> None:
    client, gateway = both
    s3.put("page.jsonl", b"<html>\n")
    s3.put("pairs.jsonl", json.dumps({"chosen": CHOSEN, "rejected": REJECTED}).encode())
    s3.put("folder/rows.jsonl", CONTENT)
    for name, value in (("keys", s3.keys), ("gone", s3.keys), ("false", {**s3.keys, "aws_secret_access_key": "x" * 40}),
                        ("late", {**s3.keys, "aws_session_token": "over"})):  # fmt: skip
        secret(client, name, value)
    of, mine = "awsS3Config.credentialsSecret: accounts/local/secrets/", "s3://mine/rows.jsonl"
    for name, url, keys, code, words in (
        ("a", mine, "false", "PERMISSION_DENIED", f"{of}false: {mine}: these credentials may not do that"),
        ("b", mine, "late", "PERMISSION_DENIED", f"{of}late: {mine}: the store refuses such a request"),
        ("c", mine, "gone", "NOT_FOUND", f"{of}gone not found; create it first"),
        ("d", mine, "", "PERMISSION_DENIED", "dataset: s3://mine/rows.jsonl: these credentials may not do that; it was "
         "asked without credentials: a job can name them in awsS3Config.credentialsSecret"),
        ("e", "s3://mine/none.jsonl", "keys", "NOT_FOUND", "dataset: s3://mine/none.jsonl not found; is it there"),
        ("f", "s3://mine/folder", "keys", "NOT_FOUND", "there is a folder of that name"),
        ("g", "s3://no-bucket/rows.jsonl", "keys", "NOT_FOUND", "dataset: s3://no-bucket/rows.jsonl not found"),
        ("h", "s3://mine/page.jsonl", "keys", "INVALID_ARGUMENT", "dataset: 's3://mine/page.jsonl': dataset-"),
        ("i", "s3://mine/pairs.jsonl", "keys", "INVALID_ARGUMENT", "'s3://mine/pairs.jsonl' holds PREFERENCE rows"),
    ):  # fmt: skip
        data_set(client, name, url)
        create(client, name, dataset=name, **({S3_FIELD: {"credentialsSecret": keys}} if keys else {}))
        if keys == "gone":
            ask(client, "DELETE", f"{A}/secrets/gone")
        found = fetched(gateway, name)
        assert (found[0], words in found[1]) == (code, True), found
        assert s3.keys["aws_secret_access_key"] not in found[1]
        assert s3.keys["aws_access_key_id"] not in found[1]


@pytest.mark.usefixtures("scheduler")
def test_a_resume_fetches_what_was_not_there(client: GatewayClient, s3: S3) -> None:
    secret(client, "keys", s3.keys)
    data_set(client, "there", "s3://mine/later.jsonl")
    create(client, "j", awsS3Config={"credentialsSecret": "keys"})
    assert ended(client, "j")[:2] == ("FAILED", "NOT_FOUND")
    s3.put("later.jsonl", CONTENT)
    ask(client, "POST", f"{JOBS}/j:resume", {})
    assert ended(client, "j")[0] == "COMPLETED"


def test_creates_that_cannot_be_honoured(client: GatewayClient, s3: S3) -> None:
    secret(client, "keys", s3.keys)
    for name, value in (("text", "hunter2"), ("half", {"aws_access_key_id": "hunter2"}),
                        ("azure", {"account_key": AZURE_KEY})):  # fmt: skip
        secret(client, name, value)
    data_set(client, "there", "s3://mine/rows.jsonl")
    data_set(client, "prompts", "s3://mine/rows.jsonl", format="RL")
    blob = "https://acc.blob.core.windows.net/cont/rows.jsonl"
    data_set(client, "blob", blob.replace("https://acc.blob.core.windows.net/cont", "az://cont@acc"))
    role, tenant = "arn:aws:iam::123456789012:role/r", "11111111-1111-1111-1111-111111111111"
    for change, status, words in (
        ({S3_FIELD: {"credentialsSecret": "absent"}}, 404, "awsS3Config.credentialsSecret: accounts/local/secrets/abs"),
        ({S3_FIELD: {"credentialsSecret": "accounts/other/secrets/keys"}}, 404, "awsS3Config.credentialsSecret"),
        ({S3_FIELD: {"credentialsSecret": "accounts/local/datasets/keys"}}, 400, "awsS3Config.credentialsSecret"),
        ({S3_FIELD: {"credentialsSecret": "text"}}, 400, "is not a JSON object of strings with aws_access_key_id"),
        ({S3_FIELD: {"credentialsSecret": "half"}}, 400, "aws_secret_access_key are needed, both"),
        ({S3_FIELD: {"credentialsSecret": "azure"}}, 400, "has keys that are not credentials"),
        ({S3_FIELD: {}}, 400, "awsS3Config: names no credentials; set credentialsSecret"),
        ({S3_FIELD: {"iamRoleArn": role}}, 400, "awsS3Config.iamRoleArn: a gateway of one's own has no cloud identity"),
        ({S3_FIELD: {"credentialsSecret": "keys", "iamRoleArn": role}}, 400, "awsS3Config.iamRoleArn"),
        ({AZURE_FIELD: {"managedIdentityClientId": tenant}}, 400, "azureBlobStorageConfig.managedIdentityClientId"),
        ({AZURE_FIELD: {"credentialsSecret": "azure", "tenantId": tenant}}, 400, "azureBlobStorageConfig.tenantId"),
        ({AZURE_FIELD: {"credentialsSecret": "azure"}}, 400, "azureBlobStorageConfig: no data set of this job"),
        ({S3_FIELD: {"credentialsSecret": "keys"}, AZURE_FIELD: {"credentialsSecret": "azure"}}, 400, AZURE_FIELD),
        ({S3_FIELD: {"credentialsSecret": "keys"}, "dataset": "rows"}, 400, "awsS3Config: no data set of this job has"),
        ({S3_FIELD: {"credentialsSecret": "keys"}, "dataset": "blob"}, 400, "awsS3Config: no data set of this job has"),
        ({S3_FIELD: {"credentialsSecret": "keys"}, "dataset": "prompts"}, 400, "prompts was declared RL; this job"),
    ):  # fmt: skip
        body = {"dataset": "there", "baseModel": "base", **change}
        found = refused(client, "POST", JOBS, body)
        assert (found[0], words in found[1]) == (status, True), found
        assert "hunter2" not in found[1]
        if S3_FIELD in change and "credentialsSecret" in str(change[S3_FIELD]):
            assert ask(client, "GET", f"{JOBS}")["supervisedFineTuningJobs"] == []
    assert "once its rows have been read" in refused(
        client, "POST", f"{JOBS}:estimateCost", {"dataset": "there", "baseModel": "base"}
    )[1]  # fmt: skip


def test_each_data_set_has_its_own_credentials(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    secret(client, "aws", {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x"})
    secret(client, "azure", {"account_key": AZURE_KEY})
    data_set(client, "there", "s3://mine/rows.jsonl")
    data_set(client, "out", "az://cont@acc/rows.jsonl")
    configs = {S3_FIELD: {"credentialsSecret": "aws"}, AZURE_FIELD: {"credentialsSecret": "azure"}}
    made = create(client, "j", evaluationDataset="out", **configs)
    assert gateway.store.get(made["name"]).private["elsewhere"] == {
        "dataset": {"url": "s3://mine/rows.jsonl", "secret": "accounts/local/secrets/aws"},
        "evaluationDataset": {"url": "az://cont@acc/rows.jsonl", "secret": "accounts/local/secrets/azure"},
    }
    assert made[AZURE_FIELD] == {"credentialsSecret": "accounts/local/secrets/azure"}


def test_an_endpoint_that_the_operator_has_not_named(
    client: GatewayClient, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set(client, "there", "s3://mine/rows.jsonl")
    body = {"dataset": "there", "baseModel": "base", S3_FIELD: {"credentialsSecret": "keys"}}
    secret(client, "keys", {**s3.keys, "endpoint_url": s3.endpoint})
    assert "the operator can name it in TRAINER_GATEWAY_ALLOWED_HOSTS" in refused(client, "POST", JOBS, body)[1]
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("TRAINER_GATEWAY_ALLOWED_HOSTS", s3.endpoint.removeprefix("http://"))
    assert ask(client, "POST", JOBS, body)["state"] == "JOB_STATE_CREATING"


@pytest.mark.usefixtures("scheduler")
def test_a_named_endpoint_is_asked(
    both: tuple[GatewayClient, Gateway], s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("TRAINER_GATEWAY_ALLOWED_HOSTS", s3.endpoint.removeprefix("http://"))
    secret(both[0], "keys", {**s3.keys, "endpoint_url": s3.endpoint, "region": "us-east-1"})
    data_set(both[0], "there", "s3://mine/rows.jsonl")
    create(both[0], "j", awsS3Config={"credentialsSecret": "keys"})
    assert ended(both[0], "j")[0] == "COMPLETED"


def test_a_preference_job(both: tuple[GatewayClient, Gateway], s3: S3) -> None:
    client, gateway = both
    s3.put("pairs.jsonl", json.dumps({"chosen": CHOSEN, "rejected": REJECTED}).encode())
    name = secret(client, "keys", s3.keys)
    data_set(client, "there", "s3://mine/pairs.jsonl")
    body = {"dataset": "there", "trainingConfig": {"baseModel": "base"}, S3_FIELD: {"credentialsSecret": name}}
    job = gateway.store.get(ask(client, "POST", f"{A}/dpoJobs", body)["name"])
    bring(gateway, job, "dataset")
    assert lacking(gateway, job) == []
    bad = {**body, S3_FIELD: {"iamRoleArn": "arn:x"}}
    assert "awsS3Config.iamRoleArn" in refused(client, "POST", f"{A}/dpoJobs", bad)[1]


def test_an_evaluation_job(both: tuple[GatewayClient, Gateway], s3: S3) -> None:
    client, gateway = both
    content = "".join(json.dumps(row) + "\n" for row in answered("4", "5")).encode()
    s3.put("answers.jsonl", content)
    secret(client, "keys", s3.keys)
    data_set(client, "there", "s3://mine/answers.jsonl")
    snippet(client, LENGTH)
    given: dict[str, Any] = {"evaluator": "snip", "inputDataset": "there", "outputDataset": "out"}
    for config, words in (({"iamRoleArn": "arn:x"}, "awsS3Config.iamRoleArn"), ({}, "names no credentials")):
        body = {"evaluationJob": {**given, S3_FIELD: config}}
        assert words in refused(client, "POST", f"{A}/evaluationJobs", body)[1]
    given[S3_FIELD] = {"credentialsSecret": "keys"}
    other = {**given, "outputDataset": "other", AZURE_FIELD: "the contract does not know it here: never acted on"}
    assert raw(client, "POST", f"{A}/evaluationJobs", json={"evaluationJob": other}).status_code == 200
    made = ask(client, "POST", f"{A}/evaluationJobs", {"evaluationJob": given})
    assert made[S3_FIELD] == {"credentialsSecret": "accounts/local/secrets/keys"}
    job = gateway.store.get(made["name"])
    with pytest.raises(GatewayError, match="inputDataset: its rows were not fetched"):
        evaluating_plans.described(gateway, job)
    bring(gateway, job, "inputDataset")
    (path,) = evaluating_plans.described(gateway, job).rows
    assert Path(path).read_bytes() == content


class _Web(BaseHTTPRequestHandler):
    """Is not to be had at first: 503 as often as `failures` says."""

    failures = 0

    def do_GET(self) -> None:
        busy, type(self).failures = type(self).failures > 0, type(self).failures - 1
        self.send_response(503 if busy else 200)
        self.send_header("content-length", "0" if busy else str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(b"" if busy else CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("TRAINER_GATEWAY_ALLOWED_HOSTS", f"127.0.0.1:{server.server_address[1]}")
        yield f"http://127.0.0.1:{server.server_address[1]}/rows.jsonl"
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("scheduler")
def test_a_store_that_cannot_be_asked_is_asked_again(client: GatewayClient, web: str) -> None:
    data_set(client, "there", web)
    _Web.failures = 2
    create(client, "third")
    assert ended(client, "third")[0] == "COMPLETED"
    _Web.failures = 3
    create(client, "never")
    state, code, message = ended(client, "never")
    assert (state, code) == ("FAILED", "FAILED_PRECONDITION")
    assert message.endswith("answered 503 (UNAVAILABLE, 3 times); :resume the job to try again")
    ask(client, "POST", f"{JOBS}/never:resume", {})
    assert ended(client, "never")[0] == "COMPLETED"


def test_a_job_that_waits_for_rows_says_so_and_holds_up_nobody(both: tuple[GatewayClient, Gateway], web: str) -> None:
    client, gateway = both
    scheduler = make_scheduler(gateway, here=Capacity(2, 1 << 40))
    scheduler._rows = RowFetches(gateway, pause=3600)
    data_set(client, "there", web)
    _Web.failures = 1
    create(client, "waits")
    create(client, "goes", dataset="rows")

    def both_there() -> dict[str, Any] | None:
        scheduler.tick()
        waits = ask(client, "GET", f"{JOBS}/waits")
        said = "it is asked again" in waits["status"].get("message", "")  # a thread of its own has asked
        return waits if said and ask(client, "GET", f"{JOBS}/goes")["state"] == "JOB_STATE_COMPLETED" else None

    try:
        job = wait_for(both_there, "the end of the one, and the other's words")
        assert job["state"] == "JOB_STATE_VALIDATING"
        ask(client, "POST", f"{JOBS}/waits:cancel", {})
    finally:
        scheduler.stop()


def test_rows_that_come_too_late_are_not_kept(both: tuple[GatewayClient, Gateway], web: str) -> None:
    client, gateway = both
    _Web.failures = 0
    data_set(client, "there", web)
    job = gateway.store.get(create(client, "j")["name"])
    ask(client, "POST", f"{JOBS}/j:cancel", {})
    bring(gateway, job, "dataset")
    assert gateway.files.names(job.name) == []
    assert "inputs" not in gateway.store.get(job.name).private


def test_a_data_set_that_is_ready_is_read_here(both: tuple[GatewayClient, Gateway], web: str) -> None:
    client, gateway = both
    _Web.failures = 0
    data_set(client, "there", web)
    ask(client, "POST", f"{A}/datasets/there:validateUpload", {})
    assert ask(client, "GET", f"{A}/datasets/there")["state"] == "READY"
    job = gateway.store.get(create(client, "j")["name"])
    assert (job.private["elsewhere"], lacking(gateway, job)) == ({}, [])
    assert job.body["estimatedCost"]["units"] == "0"


@pytest.fixture(scope="module")
def blobs() -> Iterator[dict[str, str]]:
    program = azurite()
    if program is None:
        pytest.skip("azurite-blob (npm install azurite; AZURITE_BLOB) and adlfs are not both here")
    with azure_server(program) as environment:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(environment["AZURE_STORAGE_CONNECTION_STRING"]) as service:
            for name, public in (("mine", None), ("public", "blob")):
                with service.create_container(name, public_access=public) as container:
                    container.upload_blob("some/rows.jsonl", CONTENT)
        yield environment


@pytest.fixture
def azure(blobs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL of rows that only a key opens; the gateway's own credentials would open them too."""
    string = blobs["AZURE_STORAGE_CONNECTION_STRING"]
    endpoint = string.partition("BlobEndpoint=")[2].rstrip(";").replace(AZURE_ACCOUNT, "{account}")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", string)
    monkeypatch.setenv("TRAINER_GATEWAY_AZURE_ENDPOINT", endpoint)
    return f"az://mine@{AZURE_ACCOUNT}/some/rows.jsonl"


@pytest.mark.slow
def test_rows_in_azure(both: tuple[GatewayClient, Gateway], azure: str) -> None:
    client, gateway = both
    string = f"DefaultEndpointsProtocol=https;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
    urls = (azure, f"https://{AZURE_ACCOUNT}.blob.core.windows.net/mine/some/rows.jsonl", "abfs://mine/some/rows.jsonl")
    ways = {
        "key": {"account_key": AZURE_KEY},
        "sas": {"sas_token": f"?{sas()}"},
        "string": {"connection_string": string},
    }
    for number, (name, value) in enumerate(ways.items()):
        secret(client, name, value)
        data_set(client, name, urls[number])
        config = {"credentialsSecret": name}
        job = gateway.store.get(create(client, name, dataset=name, azureBlobStorageConfig=config)["name"])
        bring(gateway, job, "dataset")
        (filename,) = gateway.files.names(job.name)
        assert gateway.files.path(job.name, filename).read_bytes() == CONTENT
    other, of = azure.replace(AZURE_ACCOUNT, "other"), "azureBlobStorageConfig.credentialsSecret"
    secret(client, "false", {"account_key": "aGVsbG8="})
    secret(client, "forged", {"sas_token": sas("aGVsbG8=")})
    for name, url, keys, code, words in (
        ("a", azure, "false", "PERMISSION_DENIED", f"{of}: accounts/local/secrets/false: az://mine/some/rows.jsonl"),
        ("b", azure, "forged", "PERMISSION_DENIED", f"{of}: accounts/local/secrets/forged: az://mine/some/rows.jsonl"),
        ("c", azure, "", "PERMISSION_DENIED", f"a job can name them in {of}"),  # the gateway's own are not lent
        ("d", azure.replace("rows", "none"), "key", "NOT_FOUND", "dataset: az://mine/some/none.jsonl not found"),
        ("e", azure.replace("mine", "none"), "key", "NOT_FOUND", "dataset: az://none/some/rows.jsonl not found"),
        ("f", other, "string", "INVALID_ARGUMENT", f"is of the account other, the credentials are of {AZURE_ACCOUNT}"),
    ):  # fmt: skip
        data_set(client, name, url)
        create(client, name, dataset=name, **({AZURE_FIELD: {"credentialsSecret": keys}} if keys else {}))
        found = fetched(gateway, name)
        assert (found[0], words in found[1]) == (code, True), found
        assert AZURE_KEY not in found[1]
    data_set(client, "public", azure.replace("mine", "public"))
    ask(client, "POST", f"{A}/datasets/public:validateUpload", {})
    assert ask(client, "GET", f"{A}/datasets/public")["exampleCount"] == "3"
