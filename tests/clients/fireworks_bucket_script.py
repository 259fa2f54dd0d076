"""Run by `test_fireworks_bucket.py` in the published client's environment: a job on rows that lie in the user's bucket.

Only `fireworks-ai` and the standard library; the gateway's address, a key and the account come from the environment.
Prints one JSON object with what it saw.
"""

import json
import sys
import time

from fireworks import Fireworks

ENDED = {"JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EARLY_STOPPED"}
PATIENCE_SECONDS = 800


def main() -> None:
    base_model, url, credentials = sys.argv[1], sys.argv[2], sys.stdin.read()
    client = Fireworks()
    client.secrets.create(key_name="AWS_KEYS", name="aws-keys", value=credentials)
    client.datasets.create(dataset_id="there", dataset={"external_url": url})
    job = client.supervised_fine_tuning_jobs.create(
        supervised_fine_tuning_job_id="theirs", dataset="accounts/local/datasets/there", base_model=base_model,
        output_model="made", epochs=1, lora_rank=4, max_context_length=256,
        aws_s3_config={"credentials_secret": "accounts/local/secrets/aws-keys"},
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and job.state not in ENDED:
        time.sleep(0.1)
        job = client.supervised_fine_tuning_jobs.get(supervised_fine_tuning_job_id="theirs")
    seen = {
        "state": job.state,
        "message": job.status.message if job.status else "",
        "config": job.aws_s3_config and job.aws_s3_config.to_dict(),
        "model": client.models.get(model_id="made").state if job.state == "JOB_STATE_COMPLETED" else None,
    }
    print(json.dumps(seen))


main()
