"""The command line as real processes: light to start, clear when it refuses, whole when it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT, SHORT, only_run, trainer
from trainer.__main__ import COMMANDS, main, overview

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "wandb", "trl")


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded in a new process that ran `code`."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_next_to_nothing():
    loaded = modules_after("from trainer.__main__ import main; main(['--help'])")
    assert not loaded & {*HEAVY, "hydra", "pydantic", "sqlalchemy", "starlette", "httpx", "rich"}


def test_a_refused_configuration_loads_no_tensor_library():
    loaded = modules_after("from trainer.__main__ import main; assert main(['data=quickstart', 'job.epoch=2']) == 2")
    assert "hydra" in loaded and not loaded & set(HEAVY)


def test_the_gateway_loads_no_tensor_library():
    loaded = modules_after("import trainer.commands.gateway")
    assert "starlette" in loaded and not loaded & set(HEAVY)


def test_a_gateway_that_serves_has_loaded_no_tensor_library(tmp_path):
    words = [sys.executable, "-m", "trainer", "gateway", "--port", "0", "--slots", "2"]
    environment = {**os.environ, "TRAINER_HOME": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as server:
        assert server.stdout is not None
        try:
            said = [server.stdout.readline() for _ in range(3)]
            loaded = Path(f"/proc/{server.pid}/maps").read_text()
        finally:
            server.terminate()
    assert said[0].startswith("gateway: http://127.0.0.1:") and "FIREWORKS_API_KEY=fw_local" in said[2]
    assert server.returncode == 0
    assert "_sqlite3" in loaded and "libtorch" not in loaded


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == overview()
    assert all(name in overview() for name in COMMANDS)


def test_datasets_is_the_published_package():
    import datasets

    assert not Path(datasets.__file__).is_relative_to(ROOT / "datasets")
    assert datasets.__version__
    assert not list((ROOT / "datasets").rglob("*.py"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["job.epoch=2"], "error: job.epoch: unknown key; did you mean epochs?"),
        (["data.train=nowhere.jsonl"], "error: job.dataset: 'nowhere.jsonl' is no file"),
        (["data.train=datasets/quickstart/trane.jsonl"], "did you mean datasets/quickstart/train.jsonl"),
        (["data=quickstart", "job.base_model=/nowhere"], "error: job.base_model: '/nowhere' is no folder"),
        (["data=quickstart", "job.warm_start_from=trainer/models/tiny"], "is not a LoRA adapter"),
        (["data=quickstart", "gateway=remote", "gateway.base_url=http://127.0.0.1:9", "gateway.account=a"],
         "FIREWORKS_API_KEY"),
        (["show", "nothing"], "error: 'nothing': no such run"),
        (["resume", "nothing"], "error: 'nothing': no such run"),
        (["promote", "nothing", "--to", "x"], "error: 'nothing': no such run"),
        (["promote", "nothing", "--to", "Not Good"], "'Not Good' is not a resource id"),
        (["chat", "nothing-there", "hi"], "no such model"),
        (["gateway", "--host", "0.0.0.0"], "0.0.0.0"),
        (["gateway", "--slots", "0"], "--slots: got '0'; expected how many jobs may run at a time, 1 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_clear_line(tmp_path, words, says):
    environment = {"FIREWORKS_API_KEY": ""}
    done = trainer(*words, home=tmp_path, env=environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_dry_run_counts_and_starts_nothing(tmp_path):
    done = trainer("--dry-run", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4,000 read, 4,000 used" in done.stdout
    assert "125 optimizer steps per epoch, 250 in all" in done.stdout
    assert not list(tmp_path.glob("*/run.json"))


def test_a_run_from_the_first_word_to_the_last(tmp_path):
    done = trainer(*SHORT, "job.output_model=mine", "name=first", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model    accounts/local/models/mine is READY in the gateway" in done.stdout
    run = only_run(tmp_path)
    for name in ("run.json", "ledger.json", "metrics.jsonl", "sync.jsonl", "samples.json"):
        assert (run / name).is_file(), name
    described = json.loads((run / "run.json").read_text())
    assert described["objective"]["denominator"].startswith("N = trained tokens of the whole optimizer step")
    assert described["hyper"]["learning_rate"] == 1e-4
    (log,) = (tmp_path / "gateway").rglob("trainer.log")
    assert json.loads(log.read_text().splitlines()[0]) == {"objective": described["objective"]}
    listed = trainer("runs", home=tmp_path)
    assert run.name in listed.stdout and "completed" in listed.stdout
    shown = trainer("show", "first", home=tmp_path)
    assert "mine (HF_PEFT_ADDON)" in shown.stdout and "ledger" in shown.stdout
    promoted = trainer("promote", "last", "--to", "mine-too", home=tmp_path)
    assert "accounts/local/models/mine-too is READY" in promoted.stdout, promoted.stderr
    said = trainer("chat", "mine-too", home=tmp_path, stdin="hello\n/new\nhello\n/quit\n")
    assert said.stdout.splitlines()[:2] == ["Hello! I am a tiny model. Ask me: what can you do?"] * 2, said.stderr
    warm = trainer(*SHORT, "job.warm_start_from=accounts/local/models/mine", "name=warm", home=tmp_path)
    assert warm.returncode == 0, warm.stdout + warm.stderr
    again = trainer("resume", "warm", home=tmp_path)
    assert (again.returncode, "nothing to go on with" in again.stderr) == (2, True)


def test_all_parameters_become_a_base_model(tmp_path):
    done = trainer(*SHORT, "job.lora_rank=0", "job.output_model=whole", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = trainer("show", home=tmp_path)
    assert "whole (HF_BASE_MODEL)" in shown.stdout
    said = trainer("chat", "whole", "hello", home=tmp_path)
    assert said.stdout.strip() == "Hello! I am a tiny model. Ask me: what can you do?", said.stderr


def test_wandb_offline_never_shows_the_key(tmp_path):
    key = "0123456789abcdef0123456789abcdef01234567"
    words = ["job.wandb_config.enabled=true", f"job.wandb_config.api_key={key}", "job.wandb_config.project=p"]
    done = trainer(*SHORT, *words, home=tmp_path, env={"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    assert list(run.rglob("*.wandb")), "wandb wrote no offline run"
    assert key not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
