"""Run by `test_fireworks_dpo.py` in the published client's environment: a preference job, and its metrics file.

Only `fireworks-ai` and the standard library; the gateway's address, a key and the account come from the environment.
Prints one JSON object with what it saw.
"""

import json
import sys
import time
import urllib.request
from pathlib import Path

from fireworks import Fireworks

ENDED = {"JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EARLY_STOPPED"}
PATIENCE_SECONDS = 800


def main() -> None:
    base_model, rows = sys.argv[1], Path(sys.argv[2])
    client = Fireworks()
    client.datasets.create(dataset_id="my-pairs", dataset={"user_uploaded": {}})
    client.datasets.upload(dataset_id="my-pairs", file=rows)
    job = client.dpo_jobs.create(
        dpo_job_id="prefer", dataset="accounts/local/datasets/my-pairs", loss_config={"method": "DPO"},
        training_config={
            "base_model": base_model, "output_model": "preferring", "epochs": 2, "learning_rate": 1e-3, "lora_rank": 4,
            "max_context_length": 256, "batch_size_samples": 4,
        },
    )  # fmt: skip
    states, deadline = [], time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        job = client.dpo_jobs.get(dpo_job_id="prefer")
        if job.state not in states:
            states.append(job.state)
        if job.state in ENDED:
            break
        time.sleep(0.1)
    endpoint = client.dpo_jobs.get_metrics_file_endpoint(dpo_job_id="prefer")
    with urllib.request.urlopen(endpoint.signed_url) as answer:
        metrics = [json.loads(line) for line in answer.read().splitlines()]
    model = client.models.get(model_id="preferring") if job.state == "JOB_STATE_COMPLETED" else None
    seen = {
        "states": states,
        "message": job.status.message if job.status else "",
        "metrics": metrics,
        "listed": [one.name for one in client.dpo_jobs.list()],
        "model": model and {"state": model.state, "kind": model.kind, "job": model.fine_tuning_job},
    }
    print(json.dumps(seen))


main()
