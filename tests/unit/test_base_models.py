"""Base models that somebody made by hand: what is wrong with their files is told by name, before any training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conformance.tiny_models import make_model
from trainer.attempt import main as worker
from trainer.compose import compose
from trainer.data.model_card import declared
from trainer.engine.local import LocalEngine
from trainer.loops.material import read_material
from trainer.loops.training import datums_of
from trainer.runs import Inputs, RowSource, RunSpec, shipped

WEIGHTS = "model.safetensors"


def changed(folder: Path, **settings: object) -> Path:
    """The folder, with other settings in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def spec_of(folder: Path, rows: Path, *words: str) -> RunSpec:
    composed = compose([f"data.train={rows}", "model=path", f"model.path={folder}", "gateway=off", *words])
    inputs = Inputs(base_model=str(folder), train=RowSource(name=rows.name, path=str(rows)))
    return composed.spec("run", inputs, created="")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", "llama")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped("models/tiny"), tmp_path / "tiny"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a" * n, "completion": "b"}) + "\n" for n in (1, 2, 9, 4)))
    return path


def test_weights_that_are_not_there_are_never_drawn_at_random(model: Path):
    tensors = load_file(model / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(kept, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its files lack model\.layers\.1\.mlp\.down_proj\.weight, .*gate_proj"):
        LocalEngine(model)


def test_a_file_that_breaks_off_is_named_as_the_models(model: Path):
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"its weights cannot be loaded \(.*whole \*\.safetensors files"):
        LocalEngine(model)


def test_pickled_weights_are_not_read(model: Path):
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="pickled weights are never read"):
        LocalEngine(model)


def test_weights_of_other_shapes_are_refused(model: Path):
    with pytest.raises(ValueError, match="weights cannot be loaded"):
        LocalEngine(changed(model, intermediate_size=32))


def test_weights_that_are_no_numbers_are_told_as_such(model: Path):
    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="log-probs are not finite numbers: its weights hold NaN"):
        LocalEngine(model)


def test_a_broken_generation_config_is_not_taken_for_none(tiny: Path):
    assert declared(str(tiny), None).stop_ids == {1}
    (tiny / "generation_config.json").unlink()
    assert declared(str(tiny), None).stop_ids == {1}
    (tiny / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"its generation_config\.json, .*cannot be read .*; mend it, or take it away"):
        declared(str(tiny), None)


def test_a_model_without_a_context_length_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom", "vocab_size": 8}))
    with pytest.raises(ValueError, match=r"config\.json \(BloomConfig\) has max_position_embeddings None"):
        declared(str(tmp_path), None)


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings(tiny: Path, rows: Path):
    found = datums_of(read_material(spec_of(tiny, rows)).material.train)
    highest = max(int(datum.targets.max()) for datum in found)
    read_material(spec_of(changed(tiny, vocab_size=highest + 1), rows))  # just enough
    with pytest.raises(ValueError, match=f"makes ids up to {highest} .* for 0 to {highest - 1} .vocab_size {highest}."):
        read_material(spec_of(changed(tiny, vocab_size=highest), rows))


def test_a_row_that_no_batch_holds_is_named_by_where_it_stands(tiny: Path, rows: Path):
    lengths = [datum.length for datum in read_material(spec_of(tiny, rows)).material.train]
    room = lengths[2] - 1
    assert sorted(lengths)[-2] <= room
    with pytest.raises(
        ValueError, match=rf"rows\.jsonl:3: the row has {room + 1} tokens, more than the {room} of a batch"
    ):
        read_material(spec_of(tiny, rows, f"job.batch_size={room}"))


def test_a_template_that_no_row_uses_is_told(tiny: Path, rows: Path):
    template = "job.jinja_template='{{ messages }}'"
    ledger = read_material(spec_of(tiny, rows, template)).ledgers["ledger.json"]
    assert "jinja_template is not used: none of the rows is a chat" in ledger.warnings()
    with pytest.raises(ValueError, match="jinja_template: line 1"):
        read_material(spec_of(tiny, rows, "job.jinja_template='{{ messages'"))


def test_a_warm_up_beyond_the_run_is_told_with_the_rate_it_ends_at(tiny: Path, rows: Path, tmp_path: Path, capsys):
    spec_of(tiny, rows, "job.learning_rate_warmup_steps=50", "job.learning_rate=1").save(tmp_path / "run")
    assert worker([str(tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "learning rate: warm-up of 50 steps is longer than the run (1): the rate ends at 0.02 and never" in told
