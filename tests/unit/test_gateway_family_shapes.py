"""Training shapes: versions that do not change, and shapes for every public name with this machine's limits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened
from trainer.gateway import base_models, tunability
from trainer.gateway.client import GatewayClient

SHAPES = "/v1/accounts/fireworks/trainingShapes"
GIB = 1 << 30


@pytest.fixture
def client(tmp_path: Path) -> Iterator[GatewayClient]:
    with opened(tmp_path / "gateway") as (found, _):
        yield found


def test_versions_do_not_change(client: GatewayClient) -> None:
    url = f"{A}/trainingShapes/mine"
    body = {"baseModel": "base", "trainerImageTag": "t1", "maxSupportedContextLength": 128}
    made = ask(client, "POST", f"{A}/trainingShapes?trainingShapeId=mine", body)
    assert (made["baseModel"], made["parameterCount"]) == ("accounts/local/models/base", "2")
    first = ask(client, "GET", f"{url}/versions/v1")
    assert (first["snapshot"]["trainerImageTag"], first["validated"]) == ("t1", False)
    assert "no version" in refused(client, "GET", f"{url}/versions/latestValidated")[1]
    assert (
        ask(client, "PATCH", f"{url}?updateMask=trainer_image_tag", {"trainerImageTag": "t2"})["trainerImageTag"]
        == "t2"
    )
    assert ask(client, "GET", f"{url}/versions/v1") == first
    assert ask(client, "GET", f"{url}/versions/latest")["name"].endswith("/versions/v2")
    assert ask(client, "PATCH", url, {"trainerImageTag": "t2"})  # nothing new: no version
    assert ask(client, "GET", f"{url}/versions")["totalSize"] == 2
    for version in ("v2", "v1"):
        ask(client, "PATCH", f"{url}/versions/{version}", {"validated": True, "public": True})
    latest = ask(client, "GET", f"{url}/versions?filter=latest_validated%3Dtrue&pageSize=1")["trainingShapeVersions"]
    assert [one["name"] for one in latest] == ["accounts/local/trainingShapes/mine/versions/v2"]
    assert ask(client, "GET", f"{url}/versions/latestValidated")["name"] == latest[0]["name"]
    ask(client, "PATCH", f"{url}/versions/v2", {"validated": False})
    assert ask(client, "GET", f"{url}/versions/latestValidated")["name"].endswith("/v1")
    assert ask(client, "GET", f"{A}/trainingShapes")["totalSize"] == 1
    assert ask(client, "DELETE", url) == {}
    assert refused(client, "GET", f"{url}/versions/v1")[0] == 404


def test_what_a_shape_may_be(client: GatewayClient) -> None:
    body = {"baseModel": "none", "trainerImageTag": "t"}
    assert "none not found" in refused(client, "POST", f"{A}/trainingShapes", body)[1]
    body = {"baseModel": "base", "trainerImageTag": "t", "displayName": "x" * 64}
    assert "displayName" in refused(client, "POST", f"{A}/trainingShapes", body)[1]
    assert (
        refused(client, "POST", f"{SHAPES}?trainingShapeId=x", {"baseModel": "base", "trainerImageTag": "t"})[0] == 404
    )


def test_any_public_name_is_a_shape_of_this_machine(client: GatewayClient) -> None:
    """As the training SDK asks for it: unversioned, the filter encoded twice."""
    found = ask(client, "GET", f"{SHAPES}/ts-qwen3-0p6b-lora/versions?filter=latest_validated%253Dtrue&pageSize=1")
    ((version,), snapshot) = found["trainingShapeVersions"], found["trainingShapeVersions"][0]["snapshot"]
    assert version["name"] == "accounts/fireworks/trainingShapes/ts-qwen3-0p6b-lora/versions/v1"
    assert (version["validated"], version["latestValidated"]) == (True, True)
    assert snapshot["baseModel"] == "accounts/fireworks/models/qwen3-0p6b"
    assert (snapshot["trainerMode"], snapshot["maxSupportedContextLength"]) == ("LORA_TRAINER", 8192)
    assert ask(client, "GET", f"{SHAPES}/ts-qwen3-0p6b-lora/versions/v1") == version
    assert ask(client, "GET", f"{SHAPES}/ts-qwen3-0p6b-lora/versions/latestValidated") == version
    assert refused(client, "GET", f"{SHAPES}/ts-qwen3-0p6b-lora/versions/v2")[0] == 404
    assert ask(client, "GET", f"{SHAPES}/ts-base-reference")["trainerMode"] == "FORWARD_ONLY"
    assert ask(client, "GET", f"{SHAPES}/whatever")["baseModel"] == "accounts/local/models/tiny"
    assert ask(client, "GET", f"{SHAPES}/ts-base/versions?filter=validated=false")["totalSize"] == 0
    assert "nosuch" in refused(client, "GET", f"{SHAPES}/ts-base/versions?filter=nosuch=1")[1]


def test_lists_across_shapes(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/trainingShapes?trainingShapeId=mine", {"baseModel": "base", "trainerImageTag": "t"})
    both = ask(client, "GET", "/v1/accounts/-/trainingShapes/-/versions", params={"pageSize": 200})
    assert both["totalSize"] == len(base_models.known()) + 1
    wanted = 'latest_validated=true AND snapshot.base_model="accounts/fireworks/models/qwen3-0p6b"'
    found = ask(client, "GET", "/v1/accounts/-/trainingShapes/-/versions", params={"filter": wanted})
    assert [one["name"].split("/")[3] for one in found["trainingShapeVersions"]] == ["qwen3-0p6b"]
    assert ask(client, "GET", SHAPES)["totalSize"] == len(base_models.known())
    for url in ("/v1/accounts/-/trainingShapes/-/versions", f"{SHAPES}/whatever/versions", SHAPES):
        assert "orderBy" in refused(client, "GET", url, params={"orderBy": "nosuch desc"})[1]
        (key,) = (word for word in ask(client, "GET", url) if word.startswith("trainingShape"))
        for order, reverse in (("name", False), ("name desc", True)):
            names = [one["name"] for one in ask(client, "GET", url, params={"orderBy": order, "pageSize": 200})[key]]
            assert names == sorted(names, reverse=reverse)


def test_a_patch_keeps_to_its_mask(client: GatewayClient) -> None:
    url = f"{A}/trainingShapes/mine"
    ask(client, "POST", f"{A}/trainingShapes?trainingShapeId=mine", {"baseModel": "base", "trainerImageTag": "t"})
    both = {"validated": True, "public": True}
    changed = ask(client, "PATCH", f"{url}/versions/v1?updateMask=validated", both)
    assert (changed["validated"], changed["public"], changed["latestValidated"]) == (True, False, True)
    assert "updateMask" in refused(client, "PATCH", f"{url}/versions/v1?updateMask=snapshot", both)[1]
    assert "updateMask" in refused(client, "PATCH", f"{url}?updateMask=nosuch", {"trainerImageTag": "x"})[1]
    assert "baseModel" in refused(client, "PATCH", f"{url}?updateMask=base_model", {})[1]
    ask(client, "PATCH", f"{url}?updateMask=description", {"description": "d", "trainerImageTag": "x"})
    cleared = ask(client, "PATCH", f"{url}?updateMask=description", {"trainerImageTag": "x"})
    assert ("description" in cleared, cleared["trainerImageTag"]) == (False, "t")


def test_what_fits() -> None:
    small, large = tunability.Trainer("cpu", 8 * GIB), tunability.Trainer("cuda", 80 * GIB)
    million = 10**6
    assert small.fits(1_500 * million, full=False)  # 1 GiB + 6.0e9 of 8.16e9 bytes
    assert not small.fits(1_500 * million, full=True)  # 24e9
    assert small.fits(400 * million, full=True)  # 1 GiB + 6.4e9
    assert large.fits(40_000 * million, full=False)  # 1 GiB + 80e9 of 81.6e9
    assert not large.fits(4_100 * million, full=True)  # 82e9
    body = {"kind": "HF_BASE_MODEL", "state": "READY", "baseModelDetails": {"parameterCount": str(1_500 * million)}}
    found = tunability.flags(body, None, small)
    assert (found["supervisedLoraTunable"], found["supervisedFullParameterTunable"]) == (True, False)
    addon = {"kind": "HF_PEFT_ADDON", "state": "READY"}
    assert tunability.flags(addon, body, small)["supervisedLoraTunable"]
    assert not tunability.flags(addon, None, small)["supervisedLoraTunable"]
    assert not tunability.flags({**body, "state": "UPLOADING"}, None, small)["tunable"]
    assert tunability.context({**body, "contextLength": 512}, full=False, trainer=small) == 512
    assert tunability.context(body, full=True, trainer=small) == 0


def test_names_of_accelerators() -> None:
    assert tunability.accelerator_type("Model: NVIDIA H100 80GB HBM3") == "NVIDIA_H100_80GB"
    assert tunability.accelerator_type("Model: NVIDIA A100-SXM4-40GB") == "NVIDIA_A100_40GB"
    assert tunability.accelerator_type("Model: NVIDIA GeForce RTX 3090") is None
