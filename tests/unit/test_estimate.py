"""Estimates by hand, against files as they are written, and against real runs."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer import history, machine
from trainer.attempt import EXIT_REFUSED, Worker
from trainer.compose import compose
from trainer.confession import CONFESSION
from trainer.data.buckets import BOUNDS
from trainer.data.datum import Datum, Pair
from trainer.errors import UsageError
from trainer.estimate import (
    CACHED_ELEMENTS,
    FUSED_TOKENS,
    LEAST_CACHED,
    MAX_TILE_ELEMENTS,
    MICRO_BATCH_TOKENS,
    Workload,
    does_not_fit,
    estimate,
    is_fused,
    layer_bytes,
    memory_of,
    padding_of,
    read_estimate,
    sizes_of,
    workload,
)
from trainer.jobs import JobState
from trainer.machine import Machine
from trainer.prices import read_prices
from trainer.runs import EngineSettings, Inputs, RowSource, RunSpec, shipped
from trainer.shapes import Architecture, Shapes, file_size, lora_tensors, read_shapes
from trainer.throughput import Measured, Workshop, keep_measured, read_measured, speed
from trainer.times import times_of

TINY = shipped("models/tiny")
MIB = 1 << 20
# H 8, I 16, two heads of 4 for queries (Q 8), one for keys (K 4), 2 layers, 32 words.
SMALL = Architecture(hidden=8, inner=16, query=8, key_value=4, layers=2, vocabulary=32)
HERE = Machine("cpu", "a cpu, 1 threads", cores=1, threads=1, memory=10**9, memory_free=10**9, held=50 * MIB)
LOAD = Workload(
    steps=10, tokens=1000, trained_tokens=500, largest_batch=100, longest_row=20, held_out_tokens=0,
    longest_held_out=0, questions=0, longest_prompt=0, evaluations=0, checkpoints=2,
)  # fmt: skip


def small() -> Shapes:
    """Qwen-like without norms of queries: 32x8 embedding; per layer 8x8, 4x8, 4x8, 8x8, 16x8, 16x8, 8x16, two norms."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,)}
    linear = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
    inner = {"gate_proj": (16, 8), "up_proj": (16, 8), "down_proj": (8, 16)}
    for layer in range(2):
        tensors |= {f"model.layers.{layer}.self_attn.{name}.weight": shape for name, shape in linear.items()}
        tensors |= {f"model.layers.{layer}.mlp.{name}.weight": shape for name, shape in inner.items()}
        tensors |= {
            f"model.layers.{layer}.{name}.weight": (8,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    return Shapes(SMALL, tensors, 0, "by hand")


def spec(*words: str, base: str = str(TINY)) -> RunSpec:
    composed = compose(["data=quickstart", "gateway=off", *words])
    inputs = Inputs(
        base_model=base,
        train=RowSource(name="rows", path=composed.job.dataset),
        evaluation=RowSource(name="held out", path=composed.job.evaluation_dataset or ""),
    )
    return composed.spec("run", inputs, created="2030-01-01T00:00:00Z")


def test_parameters_and_linear_layers_by_hand():
    shapes = small()
    layer = 8 * 8 + 4 * 8 + 4 * 8 + 8 * 8 + 3 * 16 * 8 + 2 * 8  # 592
    assert shapes.parameters == 32 * 8 + 8 + 2 * layer == 1448
    assert len(shapes.linear("all-linear")) == 14
    assert shapes.linear(["q_proj"]) == {f"model.layers.{n}.self_attn.q_proj": (8, 8) for n in range(2)}
    assert len(shapes.linear(r".*layers\.1\.mlp\..*")) == 3
    adapter = lora_tensors(shapes.linear("all-linear"), 2)
    # r (in + out): 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24) = 256 a layer
    assert sum(int(np.prod(shape)) for shape in adapter.values()) == 2 * 256


def test_memory_of_an_adapter_by_hand():
    run = spec("job.lora_rank=2")
    shapes = small()
    adapter = lora_tensors(shapes.linear("all-linear"), 2)
    memory = memory_of(run, LOAD, machine=HERE, shapes=shapes, adapter=adapter)
    # A layer keeps 4*8 + 4*8 + 3*4 + 4*16 = 140 numbers a token, and 2 for each of 7 adapters; 100 tokens of 4 bytes.
    activations = 2 * 154 * 4 * 100
    head = 2 * 4 * 50 * 32  # half of the 100 positions are trained
    assert (memory.weights, memory.trainable, memory.gradients, memory.optimizer) == (1448 * 4, 2048, 2048, 4096)
    assert (memory.activations, memory.head) == (activations, head)
    assert memory.process == 150 * MIB
    assert memory.peak == 150 * MIB + 1448 * 4 + 2048 + 4096 + int(2048 + 1.4 * (activations + head))


def test_memory_of_all_parameters_by_hand():
    run = spec("job.lora_rank=0")
    whole = memory_of(run, LOAD, machine=HERE, shapes=small(), adapter=None)
    numbers = 140 + 2 * 8 + 8 + 4  # and what norms multiply by their weights
    assert (whole.trainable, whole.gradients, whole.optimizer) == (0, 4 * 1448, 8 * 1448)
    assert whole.activations == 2 * numbers * 4 * 100
    assert whole.head == 2 * 4 * 50 * 32 + 4 * 32 * 8
    half = memory_of(spec("job.lora_rank=0", "engine.dtype=bfloat16"), LOAD, machine=HERE, shapes=small(), adapter=None)
    assert (half.weights, half.trainable, half.gradients) == (2 * 1448, 4 * 1448, 6 * 1448)
    assert half.activations == 2 * 100 * (2 * numbers + 2 * (2 * 8 + 8 + 4))


def test_recomputing_keeps_one_layer_and_the_inputs_of_all():
    adapter = lora_tensors(small().linear("all-linear"), 2)
    run = spec("job.lora_rank=2", "engine.gradient_checkpointing=true")
    memory = memory_of(run, LOAD, machine=HERE, shapes=small(), adapter=adapter)
    assert memory.activations == 2 * 100 * 8 * 4 + 154 * 4 * 100


def test_fused_layers_by_hand_and_where_the_engine_has_them():
    shapes = read_shapes(str(TINY))
    assert shapes is not None
    # H 96, I 256, Q 128, K 64, norms of heads: 2*96 + 3*128 + 2*64 + 2*256 + 128 + 64 = 1408 numbers a token
    assert layer_bytes(spec(), shapes, 10, device="cpu") == 4 * 10 * 1408
    assert layer_bytes(spec("model.lora.dropout=0.1"), shapes, 10, device="cpu") > 4 * 10 * 1408

    from trainer.engine.local import LocalEngine

    for words in ([], ["engine.attention=sdpa"], ["engine.dtype=bfloat16"], ["engine.layout=padded"]):
        run = spec(*words)
        assert LocalEngine(TINY, run.engine)._fused is is_fused(run, shapes, "cpu")
    assert not is_fused(spec(), shapes, "cuda")


def test_a_long_row_goes_alone_and_a_batch_is_cut():
    adapter = lora_tensors(small().linear("all-linear"), 2)
    run = spec("job.lora_rank=2")

    def activations(largest: int, longest: int) -> int:
        load = Workload(**{**LOAD.__dict__, "largest_batch": largest, "longest_row": longest})
        return memory_of(run, load, machine=HERE, shapes=small(), adapter=adapter).activations

    assert activations(32_768, 20) == activations(2048, 20)
    assert activations(32_768, 3000) == activations(3000, 3000)


def plain_rows(*lengths: int) -> list[Datum]:
    return [Datum(np.full(n, 2), np.full(n, 3), np.ones(n, np.float32)) for n in lengths]


def test_padding_is_counted_in_tokens_and_in_memory():
    """Batches of 100 + 90 + 10 and of 95 rows; a bucket costs 64, so that 10 goes alone: 100 + 90 are laid as 200."""
    adapter = lora_tensors(small().linear("all-linear"), 2)
    run = spec(
        "job.lora_rank=2", "job.epochs=3", "engine.layout=padded", "job.batch_size_samples=3", "data.shuffle=false"
    )
    load = workload(run, plain_rows(100, 90, 10, 95), held_out=[], prompts=[])
    assert (load.batches, load.together) == (((100, 90, 10), (95,)), 1)
    laid = padding_of(run, load, "cpu")
    assert laid is not None and (laid.tokens, laid.largest) == (3 * 10, 200)
    memory = memory_of(run, load, machine=HERE, shapes=small(), adapter=adapter)
    assert memory.activations == 2 * 154 * 4 * 200
    found = estimate(run, load, machine=HERE, shapes=small(), known=[], prices=read_prices())
    assert (found.layout, found.padding, found.tokens) == ("padded", 30, 3 * 295)
    assert found.lines()[-1] == "  layout: padded, 30 tokens of padding (3.3% of all computed)"
    packed = spec("job.lora_rank=2", "job.batch_size_samples=3")
    load = workload(packed, plain_rows(100, 90, 10, 95), held_out=[], prompts=[])
    assert load.batches == () and padding_of(packed, load, "cpu") is None
    found = estimate(packed, load, machine=HERE, shapes=small(), known=[], prices=read_prices())
    assert found.lines()[-1] == "  layout: packed, no padding"


def test_both_sides_of_a_pair_are_padded_together():
    run = spec("engine.layout=padded")
    chosen, rejected, *other = plain_rows(100, 40, 98, 98)
    load = workload(run, [Pair(chosen, rejected), Pair(other[0], other[1])], held_out=[], prompts=[])
    assert load.together == 2 and sorted(load.batches[0]) == [40, 98, 98, 100]
    laid = padding_of(run, load, "cpu")
    assert laid is not None and (laid.tokens, laid.largest) == (400 - 336, 400)


def test_a_mask_is_counted_where_packed_rows_have_one():
    shapes = small()
    packed, padded = (
        layer_bytes(spec("engine.attention=sdpa", f"engine.layout={layout}"), shapes, 100, device="cpu")
        for layout in ("packed", "padded")
    )
    assert packed - padded == 5 * 100 * 100 // 2  # of 2 layers


def test_a_padded_micro_batch_is_within_its_bounds_where_the_plan_is_another():
    adapter = lora_tensors(small().linear("all-linear"), 2)
    run = spec("job.lora_rank=2", "engine.layout=padded")
    load = Workload(**{**LOAD.__dict__, "largest_batch": 5000, "longest_row": 20})
    memory = memory_of(run, load, machine=HERE, shapes=small(), adapter=adapter)
    assert memory.activations == 2 * 154 * 4 * BOUNDS["cpu"].tokens


def test_the_engine_pads_as_estimated():
    from trainer.engine.local import LocalEngine

    run = spec("engine.layout=padded", "job.batch_size_samples=7", "data.shuffle=false")
    data = plain_rows(*np.random.default_rng(0).integers(5, 120, 20).tolist())
    laid = padding_of(run, workload(run, data, held_out=[], prompts=[]), "cpu")
    engine = LocalEngine(TINY, run.engine)
    engine.create_model("m", lora=None)
    batches = (data[:7], data[7:14], data[14:])
    assert laid is not None and laid.tokens == sum(engine.forward("m", batch).padding for batch in batches) > 0


def test_file_sizes_are_those_of_files(tmp_path):
    adapter = lora_tensors(small().linear("all-linear"), 8)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in adapter.items()}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert file_size(adapter, metadata={"format": "pt"}) == (tmp_path / "a.safetensors").stat().st_size
    save_file(arrays, tmp_path / "b.safetensors")
    assert file_size(adapter) == (tmp_path / "b.safetensors").stat().st_size


def test_checkpoints_by_hand():
    adapter = lora_tensors(small().linear("all-linear"), 2)
    load = Workload(**{**LOAD.__dict__, "checkpoints": 7})
    lora = sizes_of(spec("job.lora_rank=2"), load, shapes=small(), adapter=adapter, device="cpu")
    header = file_size(adapter, metadata={"format": "pt"}) - 4 * 512
    state = file_size(
        {f"{kind}.{name}": shape for kind in ("exp_avg", "exp_avg_sq") for name, shape in adapter.items()}
    )
    assert lora.model == 4 * 512 + header + 1200
    assert lora.checkpoint == lora.model + state + 6744 + 60
    assert lora.kept == 3 * lora.checkpoint
    whole = sizes_of(spec("job.lora_rank=0", "engine.dtype=bfloat16"), load, shapes=small(), adapter=None, device="cpu")
    assert 14 * 1448 < whole.checkpoint < 14 * 1448 + 12_000  # 2 weights, 4 masters, 8 moments, headers


def test_the_tiny_model_from_its_headers_and_from_its_config_alone(tmp_path):
    shapes = read_shapes(str(TINY))
    assert shapes is not None and shapes.parameters == 492_640 and shapes.stored_bytes == 4 * 492_640
    shutil.copy(TINY / "config.json", tmp_path)
    derived = read_shapes(str(tmp_path))
    assert derived is not None and derived.tensors == shapes.tensors and derived.source == "config.json"


def test_what_is_not_on_this_machine_is_said_to_be_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert read_shapes("no-such/model") is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "odd"}))
    assert read_shapes(str(tmp_path)) is None
    found = estimate(spec(base="no-such/model"), LOAD, machine=HERE, shapes=None, known=[], prices=read_prices())
    assert (found.memory, found.seconds, found.steps) == (None, None, 10)
    assert "unknown" in found.lines()[1]


def test_a_damaged_header_names_the_file(tmp_path):
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 5) + b"{nope")
    with pytest.raises(ValueError, match=r"model\.safetensors: its safetensors header cannot be read"):
        read_shapes(str(tmp_path))


def test_the_engines_constants_are_the_ones_that_are_counted_with():
    from trainer.engine import head, local

    assert local._TOKENS == MICRO_BATCH_TOKENS
    assert local._FUSED_TOKENS == FUSED_TOKENS
    assert head._MAX_TILE_ELEMENTS == MAX_TILE_ELEMENTS
    assert (head._CACHED_ELEMENTS, head._LEAST_CACHED) == (CACHED_ELEMENTS, LEAST_CACHED)


def test_the_tightest_cgroup_is_what_there_is(tmp_path):
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n")
    assert machine.memory(tmp_path) == (16000 << 10, 8000 << 10)
    assert machine.memory(tmp_path, held=1000)[1] == (8000 << 10) + 1000
    write("proc/self/cgroup", "0::/pod/box\n")
    write("sys/fs/cgroup/pod/box/memory.max", "max\n")
    write("sys/fs/cgroup/pod/box/memory.current", "100\n")
    write("sys/fs/cgroup/pod/memory.max", "5000000\n")
    write("sys/fs/cgroup/pod/memory.current", "4000000\n")
    write("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 1000000\n")
    assert machine.memory(tmp_path) == (5_000_000, 2_000_000)
    write("proc/self/cgroup", "4:memory:/box\n0::/\n")
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1\n")
    assert machine.memory(tmp_path) == (16000 << 10, 8000 << 10)
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n")
    assert machine.memory(tmp_path) == (3_000_000, 2_000_000)


def test_prices_by_size_and_by_the_hour(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))  # without prices of one's own
    path = tmp_path / "prices.json"
    classes = [{"up_to_parameters": 1000, "price": 0.5}, {"up_to_parameters": None, "price": 3.0}]
    path.write_text(json.dumps({"machine_hour": 2.0, "per_million_tokens": classes}))
    prices = read_prices(path)
    assert prices.cost(tokens=2_000_000, seconds=1800, parameters=1000) == pytest.approx(2 * 0.5 + 1.0)
    assert prices.cost(tokens=1_000_000, seconds=0, parameters=None) == 3.0
    assert read_prices().cost(tokens=10**9, seconds=10**6, parameters=10**11) == 0
    path.write_text(json.dumps({"per_million_tokens": classes[::-1]}))
    with pytest.raises(UsageError, match="small to large"):
        read_prices(path)


def test_speed_comes_from_the_runs_that_were_most_alike(tmp_path):
    path = tmp_path / "throughput.json"
    where = Workshop(device="d", parameters=1000, mode="lora", dtype="float32", recompute=False)

    def ran(rate: float, step: float, **other: object) -> None:
        at = where.model_copy(update=other)
        keep_measured(
            Measured(where=at, tokens_per_step=step, tokens_per_second=rate, startup_seconds=1, other_ratio=1), path
        )

    def guess(step: float, at: Workshop = where) -> tuple[float, str]:
        found = speed(at, step, known=read_measured(path), threads=1, gpu=False)
        return found.tokens_per_second, found.source

    assert "built-in" in guess(100)[1]
    ran(50.0, 100.0, parameters=2000)
    assert guess(100) == (100.0, "scaled from a run of 2,000 parameters here")
    ran(10.0, 100.0)
    ran(30.0, 10_000.0)
    assert guess(120) == (10.0, "measured here")
    assert guess(9_000)[0] == 30.0
    ran(14.0, 110.0)
    ran(12.0, 110.0)
    assert guess(120) == (12.0, "measured here, 3 runs")
    assert guess(120, where.model_copy(update={"device": "other"}))[1].startswith("a built-in")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"throughput\.json: cannot be read"):
        read_measured(path)


def test_a_run_that_cannot_fit_is_told_what_would():
    run, shapes = spec("job.lora_rank=0"), small()
    load = Workload(**{**LOAD.__dict__, "largest_batch": 100_000, "longest_row": 100_000})
    tight = Machine(**{**HERE.__dict__, "memory_free": 100 * MIB})
    found = estimate(run, load, machine=tight, shapes=shapes, known=[], prices=read_prices())
    words = does_not_fit(run, load, found, machine=tight, shapes=shapes)
    assert words is not None and words.startswith("the run needs about 329.8 MiB of memory and 100.0 MiB are free")
    assert "engine.gradient_checkpointing=true" in words and "engine.dtype=bfloat16" in words
    assert "train.over_memory=try" in words
    roomy = Machine(**{**HERE.__dict__, "memory_free": 300 * MIB})
    found = estimate(run, load, machine=roomy, shapes=shapes, known=[], prices=read_prices())
    words = does_not_fit(run, load, found, machine=roomy, shapes=shapes) or ""
    assert "gradient_checkpointing=true (about 248.6 MiB)" in words  # fits, so nothing is said behind it
    found = estimate(run, load, machine=HERE, shapes=shapes, known=[], prices=read_prices())
    assert does_not_fit(run, load, found, machine=HERE, shapes=shapes) is None


@pytest.fixture
def signals() -> Iterator[None]:
    """A worker in this process takes over SIGINT and SIGTERM; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_worker_refuses_before_it_loads_a_weight(tmp_path, monkeypatch, signals):
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    weights = base / "model.safetensors"
    length = struct.unpack("<Q", weights.read_bytes()[:8])[0]
    weights.write_bytes(weights.read_bytes()[: 8 + length])  # a header alone: loading it would fail otherwise
    folder = tmp_path / "run"
    run = spec("data.max_rows=20", base=str(base))
    run.save(folder)

    def look(engine: EngineSettings) -> Machine:
        return Machine(**{**HERE.__dict__, "memory_free": 100 * MIB})

    assert Worker(run, folder, look=look).run() == EXIT_REFUSED
    one = history.read(folder)
    assert one.state is JobState.FAILED and "the run needs about" in one.message
    states = [event.body.get("state") for event in history.events(folder) if event.kind == "state"]
    assert states == [JobState.VALIDATING, JobState.FAILED]
    written = read_estimate(folder)
    assert written is not None and written.have == 100 * MIB and written.steps == 1


def test_seconds_are_the_sum_of_attempts(tmp_path):
    def event(seq: int, minute: int, state: str) -> str:
        body = {"state": f"JOB_STATE_{state}", "code": "OK", "message": ""}
        return json.dumps({"seq": seq, "time": f"2030-01-01T00:{minute:02d}:00Z", "kind": "state", "body": body})

    moments = [(0, "VALIDATING"), (1, "RUNNING"), (5, "PAUSED"), (30, "VALIDATING"), (32, "RUNNING"), (33, "COMPLETED")]
    lines = [event(seq, *moment) for seq, moment in enumerate(moments, 1)]
    (tmp_path / "sync.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "perf.jsonl").write_text('{"step": 1, "perf/seconds": 100.0}\n{"step": 2, "perf/seconds": 80.0}\n{"st')
    times = times_of(tmp_path)
    assert (times.attempts, times.total, times.startup, times.training) == (2, 8 * 60, 3 * 60, 180)
    assert times.other == 120
    assert times_of(tmp_path / "none").total == 0


def test_the_workload_is_counted_from_the_plan():
    def row(length: int) -> Datum:
        weights = np.ones(length, np.float32)
        weights[0] = 0
        return Datum(np.ones(length, np.int64), np.ones(length, np.int64), weights)

    run = spec("job.batch_size_samples=2", "job.epochs=3", "train.checkpoint_every_steps=4")
    load = workload(run, [row(n) for n in (5, 7, 9, 3, 4)], held_out=[row(6)], prompts=[2, 3])
    assert (load.steps, load.tokens, load.trained_tokens) == (9, 3 * 28, 3 * 23)
    assert (load.largest_batch, load.longest_row, load.held_out_tokens) == (16, 9, 6)
    assert (load.questions, load.longest_prompt, load.evaluations, load.checkpoints) == (2, 3, 4, 3)


def confessed(tmp_path: Path, *words: str) -> dict[str, dict]:
    """Lines of a real run's confession, by name."""
    environment = {**os.environ, "TRAINER_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", "gateway=off", f"output_dir={tmp_path / 'run'}", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "estimate against actual: " in done.stdout
    document = json.loads((tmp_path / "run" / CONFESSION).read_bytes())
    return {line["name"]: line for line in document["lines"]}


def check(lines: dict[str, dict]) -> None:
    assert [lines[name]["error"] for name in ("steps", "tokens", "trained tokens", "cost")] == [0, 0, 0, 0]
    assert abs(lines["checkpoint"]["error"]) < 0.02
    assert abs(lines["peak memory"]["error"]) < 0.30
    assert lines["seconds"]["actual"] > 0


def test_a_short_run_takes_what_was_estimated(tmp_path):
    check(confessed(tmp_path, "data=quickstart", "data.max_rows=64"))


@pytest.mark.slow
def test_a_padded_run_takes_what_was_estimated(tmp_path):
    check(confessed(tmp_path, "data=quickstart", "engine.attention=sdpa"))
    steps = [json.loads(line) for line in (tmp_path / "run" / "perf.jsonl").read_text().splitlines()]
    estimated = read_estimate(tmp_path / "run")
    assert estimated is not None and 0 < estimated.padding == sum(one["perf/padded_tokens"] for one in steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["experiment=quickstart"], ["data=quickstart", "job.lora_rank=0", "job.batch_size=4096"]]
)
def test_runs_take_what_was_estimated(tmp_path, words):
    check(confessed(tmp_path, *words))
    assert len(read_measured(tmp_path / "throughput.json")) == 1
