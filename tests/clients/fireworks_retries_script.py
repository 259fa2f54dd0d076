"""Run by `test_fireworks_retries.py` in the published client's environment: creates, behind a proxy that misbehaves.

    python fireworks_retries_script.py job|dataset|deployment ID...

One create for each ID, one after the other; before each the proxy is told by GET /next/ID. Prints one JSON object:
ID -> the name that was made, or the class of the error. Only `fireworks-ai` and the standard library.
"""

import json
import os
import sys
import urllib.request

from fireworks import Fireworks, FireworksError


def made(client: Fireworks, kind: str, name: str) -> str:
    try:
        if kind == "job":
            jobs = client.supervised_fine_tuning_jobs
            return str(jobs.create(dataset="rows", base_model="base", display_name=name).name)
        if kind == "deployment":
            return str(client.deployments.create(deployment_id=name, base_model="base").name)
        return str(client.datasets.create(dataset_id=name, dataset={"user_uploaded": {}}).name)
    except FireworksError as error:
        return type(error).__name__


def main() -> None:
    kind, *names = sys.argv[1:]
    client, found = Fireworks(), dict[str, str]()
    for name in names:
        urllib.request.urlopen(f"{os.environ['FIREWORKS_BASE_URL']}/next/{name}").close()
        found[name] = made(client, kind, name)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
