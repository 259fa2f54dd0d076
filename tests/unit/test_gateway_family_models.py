"""Models: known by name, checked by their headers, imported, converted, versioned."""

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw, safetensors, wait_for, write_base_model
from trainer.gateway import base_models, weights
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway

# Llama's layout, as small as it gets: H 4, one layer of two heads, I 6, V 8; the head is tied.
CONFIG = {
    "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6,
    "vocab_size": 8, "num_key_value_heads": 1, "tie_word_embeddings": True, "max_position_embeddings": 64,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": [8, 4], "model.norm.weight": [4], "model.layers.0.self_attn.q_proj.weight": [4, 4],
    "model.layers.0.self_attn.k_proj.weight": [2, 4], "model.layers.0.self_attn.v_proj.weight": [2, 4],
    "model.layers.0.self_attn.o_proj.weight": [4, 4], "model.layers.0.mlp.gate_proj.weight": [6, 4],
    "model.layers.0.mlp.up_proj.weight": [6, 4], "model.layers.0.mlp.down_proj.weight": [4, 6],
    "model.layers.0.input_layernorm.weight": [4], "model.layers.0.post_attention_layernorm.weight": [4],
}  # fmt: skip
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


def zeros(shapes: dict[str, list[int]]) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        entries[name] = ("F32", shape, offset, offset + size)
        offset += size
    return safetensors(entries, offset)


def put(client: GatewayClient, model: str, files: dict[str, bytes], **body: Any) -> tuple[int, dict[str, Any]]:
    ask(client, "POST", f"{A}/models", {"modelId": model, "model": body})
    sizes = {"filenameToSize": {name: str(len(content)) for name, content in files.items()}}
    urls = ask(client, "POST", f"{A}/models/{model}:getUploadEndpoint", sizes)["filenameToSignedUrls"]
    for name, content in files.items():
        assert raw(client, "PUT", urls[name], content=content).status_code == 200
    answer = raw(client, "GET", f"{A}/models/{model}:validateUpload")
    return answer.status_code, answer.json()


def base_files(shapes: dict[str, list[int]]) -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": zeros(shapes)}


def test_base_models_are_known_by_name(client: GatewayClient) -> None:
    found = ask(client, "GET", "/v1/accounts/fireworks/models/qwen3-0p6b")
    assert (found["state"], found["kind"], found["contextLength"]) == ("READY", "HF_BASE_MODEL", 40960)
    assert found["baseModelDetails"]["moe"] is False
    assert found["baseModelDetails"]["parameterCount"] == "596049920"
    assert found["huggingFaceUrl"] == "https://huggingface.co/Qwen/Qwen3-0.6B"
    listed = ask(client, "GET", "/v1/accounts/fireworks/models", params={"filter": "baseModelDetails.moe=true"})
    assert [one["name"] for one in listed["models"]] == ["accounts/fireworks/models/qwen3-30b-a3b"]
    status, message = refused(client, "GET", "/v1/accounts/fireworks/models/nothing")
    assert (status, "qwen3-4b" in message) == (404, True)
    assert refused(client, "DELETE", "/v1/accounts/fireworks/models/qwen3-0p6b")[0] == 404
    assert refused(client, "PATCH", "/v1/accounts/fireworks/models/qwen3-0p6b", {"displayName": "x"})[0] == 404
    body = {"dataset": "rows", "baseModel": "accounts/fireworks/models/qwen3-0p6b"}
    assert ask(client, "POST", f"{A}/supervisedFineTuningJobs", body)["baseModel"] == body["baseModel"]
    body["baseModel"] = "accounts/fireworks/models/nothing"
    assert refused(client, "POST", f"{A}/supervisedFineTuningJobs", body)[0] == 404
    assert base_models.hub_id("accounts/fireworks/models/qwen3-0p6b") == "Qwen/Qwen3-0.6B"


def test_a_whole_base_model_and_an_adapter_on_it(client: GatewayClient) -> None:
    assert put(client, "m", base_files(SHAPES), kind="HF_BASE_MODEL") == (200, {"warnings": []})
    found = ask(client, "GET", f"{A}/models/m")
    assert found["baseModelDetails"]["parameterCount"] == str(32 + 4 + 16 + 8 + 8 + 16 + 24 * 3 + 8)
    assert (found["tunable"], found["supervisedFullParameterTunable"], found["rlTunable"]) == (True, True, False)
    lora = {f"{Q}.lora_A.weight": [2, 4], f"{Q}.lora_B.weight": [4, 2]}
    config = json.dumps({"r": 2, "target_modules": ["q_proj"]}).encode()
    details = {"baseModel": "accounts/local/models/m", "r": 2, "targetModules": ["q_proj"]}
    files = {"adapter_config.json": config, "adapter_model.safetensors": zeros(lora)}
    assert put(client, "a", files, peftDetails=details) == (200, {"warnings": []})
    adapter = ask(client, "GET", f"{A}/models/a")
    assert (adapter["supervisedLoraTunable"], adapter["supervisedFullParameterTunable"]) == (True, False)
    for name, changed, says in (
        ("b", {f"{Q}.lora_A.weight": [3, 4]}, "of rank 3"),
        ("c", {f"{Q}.lora_A.weight": [2, 5]}, "[4, 4]"),
        ("d", {f"{Q}.lora_B.weight": [5, 2]}, "[4, 4]"),
        ("e", {f"{Q}x.lora_A.weight": [2, 4]}, "no layer"),
    ):
        files["adapter_model.safetensors"] = zeros(changed)
        status, answer = put(client, name, files, peftDetails=details)
        assert (status, says in answer["message"]) == (400, True), answer
        assert ask(client, "GET", f"{A}/models/{name}")["state"] == "UPLOADING"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model.norm.weight": None}, "lacks model.norm.weight"),
        ({"model.norm.weight": [5]}, "model.norm.weight has shape [5]; by config.json it is [4]"),
    ],
)
def test_a_base_model_that_is_not_what_its_config_says(
    client: GatewayClient, changed: dict[str, Any], says: str
) -> None:
    shapes = {name: shape for name, shape in {**SHAPES, **changed}.items() if shape}
    status, answer = put(client, "m", base_files(shapes), kind="HF_BASE_MODEL")
    assert (status, says in answer["message"]) == (400, True), answer


def test_an_index_names_what_is_there(client: GatewayClient) -> None:
    files = base_files(SHAPES)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"model.norm.weight": "other"}}).encode()
    assert "other" in put(client, "m", files, kind="HF_BASE_MODEL")[1]["message"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"lost": "model.safetensors"}}).encode()
    assert "lost" in put(client, "n", files, kind="HF_BASE_MODEL")[1]["message"]


def floats(values: list[float]) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}).encode()
    return struct.pack("<Q", len(header)) + header + np.array(values, "<f4").tobytes()


def test_weights_in_another_precision(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    # 1 + 2^-8 lies between the bfloat16 numbers 1 and 1 + 2^-7: to even, 1; 1 + 3 * 2^-8 goes to 1 + 2^-6.
    values = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.5, 0.1]
    files = {"config.json": b'{"model_type": "x", "torch_dtype": "float32"}', "model.safetensors": floats(values)}
    assert put(client, "m", files, kind="HF_BASE_MODEL")[0] == 200
    for _ in range(2):
        assert ask(client, "POST", f"{A}/models/m:prepare", {"precision": "BF16"}) == {}
    assert ask(client, "POST", f"{A}/models/m:prepare", {"precision": "FP16"}) == {}
    half = gateway.files.path("accounts/local/models/m/precisions/fp16", "model.safetensors")
    brain = gateway.files.path("accounts/local/models/m/precisions/bf16", "model.safetensors")
    assert weights.read_header(half, name="h")["w"] == {"dtype": "F16", "shape": [5], "data_offsets": [0, 10]}
    assert np.frombuffer(half.read_bytes()[-10:], "<f2").tolist() == np.array(values, "<f2").tolist()
    bits = np.frombuffer(brain.read_bytes()[-10:], "<u2")
    assert bits.tolist() == [0x3F80, 0x3F80, 0x3F82, 0xC020, 0x3DCD]
    config = gateway.files.path("accounts/local/models/m/precisions/bf16", "config.json")
    assert json.loads(config.read_bytes())["torch_dtype"] == "bfloat16"
    assert sorted(ask(client, "GET", f"{A}/models/m:getDownloadEndpoint")["filenameToSignedUrls"]) == sorted(files)
    assert refused(client, "POST", f"{A}/models/m:prepare", {"precision": "FP8"})[0] == 501
    assert refused(client, "POST", f"{A}/models/m:prepare", {})[0] == 400
    put(client, "large", {"config.json": b'{"model_type": "x"}', "w.safetensors": floats([1e6])}, kind="HF_BASE_MODEL")
    assert "65504" in refused(client, "POST", f"{A}/models/large:prepare", {"precision": "FP16"})[1]


def test_versions(client: GatewayClient) -> None:
    ask(client, "PATCH", f"{A}/models/base", {"description": "first"})
    made = ask(client, "POST", f"{A}/models/base/versions", {})
    assert (made["name"], made["snapshot"]["description"]) == ("accounts/local/models/base/versions/v1", "first")
    assert ask(client, "POST", f"{A}/models/base/versions?versionId=mine", {})["name"].endswith("/mine")
    assert refused(client, "POST", f"{A}/models/base/versions?versionId=mine", {})[0] == 409
    assert ask(client, "GET", f"{A}/models/base/versions:count") == {"count": 2}
    assert refused(client, "POST", f"{A}/models/base/versions/v1:deploy", {})[0] == 501


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{}", "model_type"), ("[]", "expected a JSON object"), ("{", "not JSON"),
        ('{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}', "never run"),
        ('{"model_type": "llama", "hidden_size": -1}', "hidden_size"),
    ],
)  # fmt: skip
def test_configurations(client: GatewayClient, config: str, says: str) -> None:
    assert ask(client, "POST", "/v1/validateModelConfig", {"configJson": json.dumps(CONFIG)}) == {}
    assert says in refused(client, "POST", "/v1/validateModelConfig", {"configJson": config})[1]


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an import asks for."""

    folder: Path
    commit = "a" * 40

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/small/revision/main"):
            names = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            body = json.dumps({"id": "org/small", "sha": self.commit, "siblings": names}).encode()
            self._send(body, {"content-type": "application/json"})
        elif self.path.startswith("/api/"):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
        else:
            self._file(send=True)

    def _file(self, *, send: bool) -> None:
        content = (self.folder / self.path.rsplit("/", 1)[-1]).read_bytes()
        etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit}, send=send)

    def _send(self, body: bytes, headers: dict[str, str], *, send: bool = True) -> None:
        self.send_response(200)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = write_base_model(tmp_path / "hub")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "modeling.py").write_bytes(b"code")
    handler = type("Handler", (_Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield url
        server.shutdown()
        thread.join()


def ended(client: GatewayClient, operation: dict[str, Any]) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        found = raw(client, "GET", f"/v1/{operation['name']}").json()
        return found if found.get("done") else None

    return wait_for(done, "the operation's end")


def test_an_import_from_the_hub(client: GatewayClient, hub: str) -> None:
    body = {"kind": "HF_BASE_MODEL", "huggingFaceUrl": f"{hub}/org/small"}
    ask(client, "POST", f"{A}/models", {"modelId": "i", "model": body})
    found = ended(client, ask(client, "POST", f"{A}/models/i:import", {}))
    assert "error" not in found, found
    assert (found["response"]["name"], found["response"]["state"]) == ("accounts/local/models/i", "READY")
    model = ask(client, "GET", f"{A}/models/i")
    assert (model["importedFrom"], model["contextLength"]) == (f"{hub}/org/small", 512)
    assert sorted(model["baseModelDetails"]["huggingfaceFiles"]) == ["config.json", "model.safetensors"]
    assert refused(client, "POST", f"{A}/models/i:import", {})[0] == 400


def test_imports_that_cannot_be(client: GatewayClient, hub: str) -> None:
    def made(name: str, url: str) -> str:
        ask(client, "POST", f"{A}/models", {"modelId": name, "model": {"kind": "HF_BASE_MODEL", "huggingFaceUrl": url}})
        return f"{A}/models/{name}:import"

    for number, url in enumerate(("http://169.254.169.254/org/small", "file:///etc/passwd", f"{hub}/one/two/three/x")):
        assert "huggingFaceUrl" in refused(client, "POST", made(f"bad-{number}", url), {})[1]
    assert "awsS3Source" in refused(client, "POST", made("none", ""), {})[1]
    lost = ended(client, ask(client, "POST", made("lost", f"{hub}/org/gone"), {}))
    assert lost["error"]["code"] == 5
    assert ask(client, "GET", f"{A}/models/lost")["state"] == "UPLOADING"
    role = {"awsS3Source": {"s3Bucket": "bucket", "roleArn": "arn:x"}}
    assert refused(client, "POST", f"{A}/models/lost:import", role)[0] == 501
