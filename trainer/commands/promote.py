"""Make a run's model, or one of its checkpoints, a model of the gateway.

python -m trainer promote last --to my-model
python -m trainer promote outputs/RUN/checkpoints/step-40 --to my-model
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from trainer import checkpoints, history
from trainer.checkpoints import Checkpoint, CheckpointCorrupt
from trainer.commands.telling import Teller
from trainer.errors import UsageError
from trainer.gateway.errors import GatewayError
from trainer.jobs import resource_id
from trainer.promotion import describe, lay_out
from trainer.runs import RunSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, and under which name."""
    parser.add_argument("what", help="a run (folder, id or part of it, 'last') or a checkpoint's folder")
    parser.add_argument("--to", required=True, metavar="MODEL", help="the model's id in the gateway")


def run(options: argparse.Namespace) -> int:
    """Upload the weights and wait until the model is READY."""
    try:
        model_id = resource_id(options.to, collection="models", what="--to")
    except ValueError as error:
        raise UsageError(str(error)) from error
    spec, checkpoint = _find(options.what)
    if spec.gateway.kind == "off":
        raise UsageError(f'{spec.id} was run with gateway=off; set "kind" in its run.json to promote from it')
    client = Teller(spec.gateway).client()
    assert client is not None
    with client, tempfile.TemporaryDirectory(prefix="trainer-promote-") as place:
        folder = lay_out(checkpoint, Path(place) / "model", tokenizer_from=_tokenizer(spec, checkpoint))
        body = describe(spec, folder)
        shown = {key: value for key, value in body.items() if key not in ("id", "path", "baseModel")}
        try:
            made = client.upload_model(folder, model_id, body={**shown, "displayName": model_id})
        except GatewayError as error:
            raise UsageError(f"--to {model_id}: {error.message}") from error
    print(f"{made['name']} is {made['state']} (step {checkpoint.step} of {spec.id})")
    print(f"talk     python -m trainer chat {model_id}")
    return 0


def _find(what: str) -> tuple[RunSpec, Checkpoint]:
    path = Path(what).expanduser()
    if (path / "manifest.json").is_file():
        chosen, run_folder = path.absolute(), path.absolute().parent.parent
    else:
        run_folder = history.find(what)
        promotable = [Path(body["path"]) for body in history.read(run_folder).checkpoints if body["promotable"]]
        if not promotable:
            raise UsageError(f"{run_folder.name}: has no promotable checkpoint yet")
        chosen = promotable[-1]
    spec = history.read(run_folder).spec
    try:
        checkpoint = checkpoints.read(chosen)
        checkpoints.verify(checkpoint)
    except CheckpointCorrupt as error:
        raise UsageError(f"{what}: {error}") from error
    if not checkpoint.promotable:
        raise UsageError(f"{what}: is not promotable; its types are {', '.join(checkpoint.types)}")
    return spec, checkpoint


def _tokenizer(spec: RunSpec, checkpoint: Checkpoint) -> Path | None:
    """A folder on this machine that has the tokenizer the run trained with."""
    for folder in (checkpoint.path.parent.parent / "model", Path(spec.inputs.base_model)):
        if (folder / "tokenizer.json").is_file():
            return folder
    return None
