"""Run by `test_fireworks_families.py` in the published client's environment: every family, by either client.

    python fireworks_families_script.py sync|async BASE_MODEL_FOLDER

Only `fireworks-ai` and the standard library; the gateway's address, a key and the account come from the environment.
Prints one JSON object with what it saw.
"""

import asyncio
import inspect
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from fireworks import APIStatusError, AsyncFireworks, Fireworks

TINY = "accounts/local/models/tiny"


async def done(answer: Any) -> Any:
    """The answer of either client."""
    return await answer if inspect.isawaitable(answer) else answer


async def status_of(call: Any) -> int:
    """The HTTP status that the call ends in."""
    try:
        await done(call())
    except APIStatusError as error:
        return error.status_code
    return 200


def put(url: str, content: bytes) -> int:
    request = urllib.request.Request(url, data=content, method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    request.add_header("X-Goog-Content-Length-Range", f"{len(content)},{len(content)}")
    with urllib.request.urlopen(request) as answer:
        return answer.status


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


async def accounts(client: Any) -> dict[str, Any]:
    user = await done(client.users.create(user_id="ann", role="user", display_name="Ann"))
    key = await done(client.api_keys.create(user_id="ann", api_key={"display_name": "laptop"}))
    listed = await done(client.api_keys.list(user_id="ann"))
    shown = [one.to_dict() for one in listed.api_keys]
    await done(client.api_keys.delete(user_id="ann", key_id=key.key_id))
    left = await done(client.api_keys.list(user_id="ann"))
    changed = await done(client.users.update(user_id="ann", role="contributor"))
    return {
        "accounts": [one.name for one in (await done(client.accounts.list())).accounts],
        "account": (await done(client.accounts.get())).email, "user": user.name, "role": changed.role,
        "users": len((await done(client.users.list())).users), "key_given": bool(key.key),
        "key_hidden": key.key not in json.dumps(shown, default=str), "keys_left": len(left.api_keys or []),
    }  # fmt: skip


async def secrets(client: Any) -> dict[str, Any]:
    made = await done(client.secrets.create(key_name="MY_TOKEN", name="my-token", value="planted"))
    changed = await done(client.secrets.update(secret_id="my-token", key_name="MY_TOKEN", value="planted-2"))
    listed = await done(client.secrets.list())
    everything = json.dumps([one.to_dict() for one in (made, changed, *listed.secrets)], default=str)
    await done(client.secrets.delete(secret_id="my-token"))
    gone = await status_of(lambda: client.secrets.get(secret_id="my-token"))
    return {"name": made.name, "hidden": "planted" not in everything, "gone": gone}


async def datasets(client: Any) -> dict[str, Any]:
    pair = {"input": {"messages": [{"role": "user", "content": "q"}]},
            "preferred_output": [{"role": "assistant", "content": "good"}],
            "non_preferred_output": [{"role": "assistant", "content": "bad"}]}  # fmt: skip
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "n": 1}
    for name, row in (("chats", chat), ("pairs", pair)):
        content = "".join(json.dumps({**row, "n": n}) + "\n" for n in range(4)).encode()
        # Pairs are declared as chats, as in the published recipes; and a file is called what people call one.
        declared = {"user_uploaded": {}, "format": "CHAT", "example_count": "4"}
        await done(client.datasets.create(dataset_id=name, dataset=declared))
        sizes = {"my rows (1).jsonl": len(content)}
        urls = await done(client.datasets.get_upload_endpoint(dataset_id=name, filename_to_size=sizes))
        put(urls.filename_to_signed_urls["my rows (1).jsonl"], content)
        await done(client.datasets.validate_upload(dataset_id=name, body={}))
    found = {name: await done(client.datasets.get(dataset_id=name)) for name in ("chats", "pairs")}
    derived = await done(client.datasets.create(dataset_id="copy", dataset={}, source_dataset_id="chats"))
    urls = await done(client.datasets.get_download_endpoint(dataset_id="copy", download_lineage=True))
    renamed = await done(client.datasets.update(dataset_id="copy", display_name="mine"))
    await done(client.datasets.delete(dataset_id="copy"))
    return {
        "states": [found[name].state for name in ("chats", "pairs")],
        "counts": [found[name].example_count for name in ("chats", "pairs")],
        "format": found["chats"].format, "derived": derived.transformed.source_dataset_id,
        "lineage": sorted(urls.filename_to_signed_urls), "renamed": renamed.display_name,
        "listed": len((await done(client.datasets.list(filter="state=READY"))).datasets),
    }  # fmt: skip


async def models(client: Any, folder: Path) -> dict[str, Any]:
    await done(client.models.create(model_id="mine", model={"kind": "HF_BASE_MODEL"}))
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors", ".jinja")}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    urls = await done(client.models.get_upload_endpoint(model_id="mine", filename_to_size=sizes))
    for name, path in files.items():
        put(urls.filename_to_signed_urls[name], path.read_bytes())
    checked = await done(client.models.validate_upload(model_id="mine"))
    model = await done(client.models.get(model_id="mine"))
    await done(client.models.prepare(model_id="mine", precision="BF16"))
    public = await done(client.models.get(model_id="qwen3-0p6b", account_id="fireworks"))
    down = await done(client.models.get_download_endpoint(model_id="mine"))
    await done(client.models.update(model_id="mine", context_length=128))
    await done(client.models.delete(model_id="mine"))
    return {
        "warnings": checked.warnings, "state": model.state, "tunable": model.tunable,
        "public": public.hugging_face_url, "files": sorted(down.filename_to_signed_urls) == sorted(files),
        "gone": await status_of(lambda: client.models.get(model_id="mine")),
    }  # fmt: skip


async def evaluators(client: Any) -> dict[str, Any]:
    body = {"display_name": "x", "entry_point": "test_x.py::test_fn"}
    await done(client.evaluators.create(evaluator=body, evaluator_id="mine"))
    sizes = {"p.tar.gz": 3}
    urls = await done(client.evaluators.get_upload_endpoint(evaluator_id="mine", filename_to_size=sizes))
    put(urls.filename_to_signed_urls["p.tar.gz"], b"abc")
    await done(client.evaluators.validate_upload(evaluator_id="mine", body={}))
    code = await done(client.evaluators.get_source_code_endpoint(evaluator_id="mine"))
    renamed = await done(client.evaluators.update(evaluator_id="mine", display_name="y"))
    state = "BUILDING"
    while state == "BUILDING":  # "abc" is no archive: it is refused at once
        await asyncio.sleep(0.1)
        state = (await done(client.evaluators.get(evaluator_id="mine"))).state
    seen = {
        "state": state, "renamed": renamed.display_name,
        "source": fetched(code.filename_to_signed_urls["p.tar.gz"]).decode(),
        "log": await status_of(lambda: client.evaluators.get_build_log_endpoint(evaluator_id="mine")),
        "listed": len((await done(client.evaluators.list())).evaluators),
    }  # fmt: skip
    await done(client.evaluators.delete(evaluator_id="mine"))
    return seen


async def jobs(client: Any) -> dict[str, Any]:
    settings = {"base_model": TINY, "lora_rank": 4}
    job = await done(
        client.dpo_jobs.create(
            dpo_job_id="pref", dataset="accounts/local/datasets/pairs", training_config=settings,
            loss_config={"method": "DPO"},
        )
    )  # fmt: skip
    await done(client.dpo_jobs.cancel(dpo_job_id="pref", body={}))
    pref = await done(client.dpo_jobs.get(dpo_job_id="pref"))
    wrong = await status_of(lambda: client.dpo_jobs.create(dataset="chats", training_config=settings))
    refused = {
        "rft": await status_of(
            lambda: client.reinforcement_fine_tuning_jobs.create(
                dataset="chats", evaluator="e", training_config=settings
            )
        ),
        "rlor": await status_of(lambda: client.reinforcement_fine_tuning_steps.create(training_config=settings)),
        "batch": await status_of(lambda: client.batch_inference_jobs.create(model=TINY, input_dataset_id="chats")),
    }
    evaluation = {"evaluator": "accounts/local/evaluators/dummy", "input_dataset": "accounts/local/datasets/dummy",
                  "output_dataset": "accounts/local/datasets/chats"}  # fmt: skip
    posted = await done(client.evaluation_jobs.create(evaluation_job=evaluation, evaluation_job_id="posted"))
    log = await done(client.evaluation_jobs.get_log_endpoint(evaluation_job_id="posted"))
    lists = {
        "dpo": len((await done(client.dpo_jobs.list())).dpo_jobs),
        "rft": (await done(client.reinforcement_fine_tuning_jobs.list())).reinforcement_fine_tuning_jobs,
        "rlor": (await done(client.reinforcement_fine_tuning_steps.list())).rlor_trainer_jobs,
        "batch": (await done(client.batch_inference_jobs.list())).batch_inference_jobs,
        "evaluation": len((await done(client.evaluation_jobs.list())).evaluation_jobs),
    }
    stopping = pref.state in ("JOB_STATE_CANCELLED", "JOB_STATE_CANCELLING")
    return {
        "name": job.name, "dataset": pref.dataset, "stopping": stopping,
        "wrong_rows": wrong, "refused": refused, "posted": posted.state, "lists": lists,
        "log": log.execution_log_signed_uri,
    }  # fmt: skip


async def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    client = AsyncFireworks(max_retries=0) if kind == "async" else Fireworks(max_retries=0)
    seen = {
        "accounts": await accounts(client), "secrets": await secrets(client), "datasets": await datasets(client),
        "models": await models(client, folder), "evaluators": await evaluators(client), "jobs": await jobs(client),
    }  # fmt: skip
    await done(client.close())
    print(json.dumps(seen, default=str))


asyncio.run(main())
