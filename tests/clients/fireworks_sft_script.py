"""Run by `test_fireworks_sft.py` in the published client's environment: a fine-tuning job from file to model.

Only `fireworks-ai` and the standard library; the gateway's address, a key and the account come from the environment.
Prints one JSON object with what it saw.
"""

import json
import sys
import time
from pathlib import Path

from fireworks import Fireworks, NotFoundError

ENDED = {"JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EARLY_STOPPED"}
PATIENCE_SECONDS = 800


def main() -> None:
    base_model, rows = sys.argv[1], Path(sys.argv[2])
    client = Fireworks()
    client.datasets.create(dataset_id="my-rows", dataset={"user_uploaded": {}, "format": "CHAT"})
    uploaded = client.datasets.upload(dataset_id="my-rows", file=rows)
    dataset = client.datasets.get(dataset_id="my-rows")
    try:
        client.models.get(model_id="my-model")
        absent = False
    except NotFoundError:
        absent = True
    job = client.supervised_fine_tuning_jobs.create(
        dataset="accounts/local/datasets/my-rows", base_model=base_model, output_model="my-model", epochs=1,
        learning_rate=1e-3, lora_rank=4, max_context_length=256,
    )  # fmt: skip
    job_id = (job.name or "").rsplit("/", 1)[-1]
    states, deadline = [], time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        job = client.supervised_fine_tuning_jobs.get(supervised_fine_tuning_job_id=job_id)
        if job.state not in states:
            states.append(job.state)
        if job.state in ENDED:
            break
        time.sleep(0.1)
    model = client.models.get(model_id="my-model") if job.state == "JOB_STATE_COMPLETED" else None
    listed = [one.name for one in client.supervised_fine_tuning_jobs.list()]
    seen = {
        "uploaded": uploaded.to_dict() if hasattr(uploaded, "to_dict") else str(uploaded),
        "dataset": {"state": dataset.state, "format": dataset.format, "example_count": dataset.example_count},
        "absent_before": absent,
        "states": states,
        "message": job.status.message if job.status else "",
        "percent": job.job_progress.percent if job.job_progress else None,
        "listed": job.name in listed,
        "model": model and {"state": model.state, "kind": model.kind, "peft": model.peft_details.to_dict()},
    }
    print(json.dumps(seen))


main()
