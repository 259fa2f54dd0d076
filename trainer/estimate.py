"""What a run will take, said before any weight is loaded: steps, tokens, time, memory, checkpoint sizes, cost.

Counts are exact (the plan of batches is a pure function of the rows). File sizes are exact to a few bytes of JSON: they
follow from the shapes in the base model's headers. Memory follows from formulas (`memory_of`), time from what runs
here have taken before (`trainer.throughput`). What a run did take is set beside it afterwards (`trainer.confession`).
Not guaranteed: memory within better than 30 %, nor anything for architectures whose layers are not SwiGLU
transformers' (experts count by those that are active). What cannot be known is None and said to be unknown.
T tokens of the largest micro-batch, N trained positions of it, n positions of one tile of the LM head, H hidden size,
I inner size, Q and K widths of all query and of all key heads, L layers, V vocabulary, P parameters, A those of the
adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from trainer.data.batches import plan_epoch, plan_figures
from trainer.data.buckets import BOUNDS, Bounds, tokens_laid
from trainer.data.datum import Example, Pair
from trainer.disk import write_whole
from trainer.machine import Look, Machine
from trainer.prices import Prices, read_prices
from trainer.runs import Closed, RunSpec
from trainer.shapes import Shape, Shapes, file_size, lora_tensors, read_header, read_shapes
from trainer.throughput import Measured, Mode, Speed, Workshop, read_measured, speed

ESTIMATE = "estimate.json"
MIB, GIB = 1 << 20, 1 << 30

# Of trainer.engine, which is not imported here because it loads torch; a test holds them equal.
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384, "mps": 4096}
FUSED_TOKENS = 4096
FUSED_KINDS = {"llama", "qwen2", "qwen3"}
MAX_TILE_ELEMENTS = 2**25
CACHED_ELEMENTS, LEAST_CACHED = 2**22, 128

_WORKER_HELD = 250 * MIB  # by a worker with torch that has read its rows
_STILL_TO_LOAD = 100 * MIB  # peft and the engine's modules, which a worker has not imported when it estimates
_CUDA_CONTEXT, _CUDA_LIBRARIES = GIB // 2, 2 * GIB  # on the GPU; in the host's memory
_SLACK = {"cpu": 1.4, "cuda": 1.1, "mps": 1.2}  # what the allocator holds over what is live at the worst moment
_SLACK_FUSED = 1.1
_MARGIN = 0.95  # a run may take so much of what is free
_RNG_STATE = {"cpu": 5056, "cuda": 5056 + 16, "mps": 5056}  # bytes of the generators' states, stored in base64
_STATE_JSON, _ADAPTER_CONFIG, _MODEL_CONFIG = 60, 1200, 1700  # bytes of small JSON files, as they come out
_FORWARD_SPEED = 2.5  # tokens/s without gradients over tokens/s of training


@dataclass(frozen=True)
class Workload:
    """What there is to go through: counts in tokens, all epochs. `largest_batch` is a bound, the rest is exact.

    context: most tokens that the model can have answered with, its prompt counted; None = not known.
    batches: lengths of the rows of each batch of the first epoch, both of a pair one after the other, where rows are
    padded (`together` of them in one bucket); else none.
    """

    steps: int
    tokens: int
    trained_tokens: int
    largest_batch: int
    longest_row: int
    held_out_tokens: int
    longest_held_out: int
    questions: int
    longest_prompt: int
    evaluations: int
    checkpoints: int
    reference_tokens: int = 0
    batches: tuple[tuple[int, ...], ...] = ()
    together: int = 1
    context: int | None = None

    def answered(self, max_tokens: int) -> int:
        """Tokens of all questions with answers of `max_tokens`, or as long as the model can make them."""
        each = self.longest_prompt + max_tokens
        return self.questions * (each if self.context is None else min(each, self.context))


@dataclass(frozen=True)
class Padding:
    """What buckets come to. tokens: of padding, over all epochs if each is as the first. largest: of one bucket."""

    tokens: int
    largest: int


class Memory(Closed):
    """Bytes by what they hold. `peak` is the most at one time; on a GPU all but `host_peak` is the GPU's."""

    process: int = Field(description="Python, libraries and rows; on a GPU the CUDA context.")
    weights: int = Field(description="Of the base.")
    trainable: int = Field(description="Adapter, or fp32 masters beside bfloat16 weights.")
    gradients: int
    optimizer: int = Field(description="AdamW's two moments, fp32.")
    activations: int = Field(description="Kept for the backward pass of one micro-batch.")
    head: int = Field(description="One tile of the LM head.")
    sampling: int = Field(description="Key-value cache of the answers.")
    peak: int
    host_peak: int = Field(description="Of the machine's memory; on a CPU the same as peak.")


class Sizes(Closed):
    """Bytes on disk."""

    checkpoint: int = Field(description="Of one checkpoint.")
    model: int = Field(description="Of its weights alone, which become the model.")
    kept: int = Field(description="Of all that are kept at the end.")


class Estimate(Closed):
    """What is said beforehand; `estimate.json`. None = unknown."""

    version: int = 1
    steps: int
    tokens: int
    trained_tokens: int
    seconds: float | None
    seconds_least: float | None = Field(default=None, description="At best, by what runs like it have taken.")
    seconds_most: float | None = Field(default=None, description="At worst, beside what else ran when it began.")
    cost: float | None
    currency: str
    parameters: int | None
    memory: Memory | None
    have: int = Field(description="Bytes free for the run, of the GPU's memory or the machine's.")
    have_host: int
    sizes: Sizes | None
    device: str
    workshop: Workshop | None
    speed: Speed | None
    shapes: str = Field(description="Where the model's shapes were read.")
    layout: Literal["packed", "padded"] = Field(default="packed", description="How batches are laid out.")
    padding: int = Field(default=0, description="Tokens of padding in training, if all epochs are as the first.")

    def lines(self) -> list[str]:
        """For people."""
        how = f"  ({self.speed.tokens_per_second:,.0f} tokens/s: {self.speed.source})" if self.speed else ""
        took = "unknown time" if self.seconds is None else f"about {clock(self.seconds)}{self._between()}"
        money = "unknown" if self.cost is None else f"{self.cost:.2f} {self.currency}"
        lines = [
            f"estimate: {self.steps:,} steps, {self.tokens:,} tokens ({self.trained_tokens:,} trained), {took}, "
            f"cost {money}{how}"
        ]
        layout = f"  layout: {self.layout}, {self._padded()}"
        if self.memory is None or self.sizes is None:
            return [*lines, f"  memory and checkpoint sizes are unknown: {self.shapes}", layout]
        m, s = self.memory, self.sizes
        parts = {"process": m.process, "weights": m.weights, "trained": m.trainable + m.gradients + m.optimizer,
                 "activations": m.activations, "head": m.head}  # fmt: skip
        words = ", ".join(f"{name} {size(value)}" for name, value in parts.items())
        return [
            *lines,
            f"  memory: peak about {size(m.peak)} of {size(self.have)} free ({words})",
            f"  checkpoints: {size(s.checkpoint)} each, {size(s.kept)} kept at the end; model {size(s.model)}",
            layout,
        ]

    def _padded(self) -> str:
        if not self.padding:
            return "no padding"
        return f"{self.padding:,} tokens of padding ({self.padding / (self.tokens + self.padding):.1%} of all computed)"

    def _between(self) -> str:
        if self.seconds_least is None or self.seconds_most is None:
            return ""
        return f" (between {clock(self.seconds_least)} and {clock(self.seconds_most)})"


def between(rate: Speed, seconds: float, machine: Machine) -> tuple[float, float]:
    """Seconds at best and at worst. A busy machine makes a run on its CPU longer, and nobody knows for how long."""
    slower = machine.busy if machine.device == "cpu" else 1.0
    return seconds * rate.fastest, seconds * rate.slowest * slower


def foresee(spec: RunSpec, load: Workload, *, folder: Path | None, look: Look, tell: Callable[[str], None]) -> Estimate:
    """Estimate, tell, write `estimate.json` into `folder` (None = a dry run), and refuse what cannot fit.

    A resumed run keeps the estimate of its first attempt. Raises `ValueError` when the run does not fit and
    `train.over_memory` is `refuse`, with what is needed, what there is and the ways out.
    """
    machine = look(spec.engine)
    shapes = read_shapes(spec.inputs.base_model, spec.model.revision)
    if shapes is not None and spec.hyper.lora_rank:
        shapes.check_targets(spec.model.lora.targets)
    found = estimate(spec, load, machine=machine, shapes=shapes, known=read_measured(), prices=read_prices())
    for line in found.lines():
        tell(line)
    if folder is not None and not (folder / ESTIMATE).exists():
        write_whole(folder / ESTIMATE, found.model_dump_json(indent=1).encode() + b"\n")
    problem = does_not_fit(spec, load, found, machine=machine, shapes=shapes)
    if problem and spec.train.over_memory == "refuse":
        raise ValueError(problem)
    if problem:
        tell(f"train.over_memory=try: {problem}")
    return found


def workload(
    spec: RunSpec,
    train: Sequence[Example],
    *,
    held_out: Sequence[Example],
    prompts: Sequence[int],
    context: int | None = None,
) -> Workload:
    """Count what a run goes through; `prompts` are the lengths of the questions that are answered. A pair counts as
    one row of the length of both sides, which is how micro-batches take it."""
    hyper = spec.hyper
    lengths = [datum.length for datum in train]
    plan = {
        "batch_tokens": hyper.batch_tokens, "batch_rows": hyper.batch_rows, "accumulation": hyper.accumulation,
        "seed": spec.train.seed, "shuffle": spec.data.shuffle,
    }  # fmt: skip
    figures = plan_figures(lengths, [datum.trained for datum in train], epochs=hyper.epochs, **plan)
    batches = ()
    if spec.engine.laid_out == "padded":
        rows = [_row_lengths(example) for example in train]
        steps = plan_epoch(lengths, epoch=0, **plan)
        batches = tuple(tuple(n for row in batch for n in rows[row]) for step in steps for batch in step)
    together = sum(sorted(lengths, reverse=True)[: hyper.batch_rows]) if hyper.batch_rows else sum(lengths)

    def times(every: int) -> int:
        return -(-figures.total_steps // every) if every else hyper.epochs

    return Workload(
        steps=figures.total_steps,
        tokens=figures.tokens * hyper.epochs,
        trained_tokens=figures.trained_tokens * hyper.epochs,
        largest_batch=min(hyper.batch_tokens, together),
        longest_row=max(lengths),
        held_out_tokens=sum(datum.length for datum in held_out),
        longest_held_out=max((datum.length for datum in held_out), default=0),
        questions=len(prompts),
        longest_prompt=max(prompts, default=0),
        evaluations=(1 + times(spec.train.evaluate_every_steps)) if held_out else 0,
        checkpoints=times(spec.train.checkpoint_every_steps),
        reference_tokens=_reference_tokens(spec, [*train, *held_out]),
        batches=batches,
        together=len(_row_lengths(train[0])),
        context=context,
    )


def _row_lengths(example: Example) -> tuple[int, ...]:
    return tuple(datum.length for datum in example.datums) if isinstance(example, Pair) else (example.length,)


def _reference_tokens(spec: RunSpec, examples: Sequence[Example]) -> int:
    """Tokens of the pass over all pairs that a loss with a reference begins with."""
    asked = "reference" in spec.objective.get("reads", ())
    return sum(example.length for example in examples if isinstance(example, Pair)) if asked else 0


def estimate(
    spec: RunSpec,
    load: Workload,
    *,
    machine: Machine,
    shapes: Shapes | None,
    known: Sequence[Measured],
    prices: Prices,
) -> Estimate:
    """All of it, from numbers alone."""
    gpu = machine.device == "cuda"
    laid = padding_of(spec, load, machine.device)
    memory = sizes = where = rate = seconds = least = most = cost = None
    if shapes is not None:
        trained = _trained(spec, shapes)
        memory = memory_of(spec, load, machine=machine, shapes=shapes, adapter=trained)
        sizes = sizes_of(spec, load, shapes=shapes, adapter=trained, device=machine.device)
        mode: Mode = "full" if spec.hyper.lora_rank == 0 else "lora"
        recompute = spec.engine.gradient_checkpointing
        where = Workshop(
            device=machine.name, parameters=shapes.parameters, mode=mode, dtype=spec.engine.dtype, recompute=recompute,
            layout=spec.engine.laid_out,
        )  # fmt: skip
        rate = speed(where, load.tokens / load.steps, known=known, threads=machine.threads, gpu=gpu)
        other = other_seconds(spec, load, rate.tokens_per_second) * rate.other_ratio
        seconds = rate.startup_seconds + load.tokens / rate.tokens_per_second + other
        least, most = between(rate, seconds, machine)
        cost = prices.cost(tokens=load.tokens, seconds=seconds, parameters=shapes.parameters)
    return Estimate(
        steps=load.steps, tokens=load.tokens, trained_tokens=load.trained_tokens, seconds=seconds,
        seconds_least=least, seconds_most=most, cost=cost,
        currency=prices.currency, parameters=shapes.parameters if shapes else None, memory=memory, sizes=sizes,
        have=machine.gpu_free if gpu and machine.gpu_free is not None else machine.memory_free,
        have_host=machine.memory_free, device=machine.device, workshop=where, speed=rate,
        shapes=shapes.source if shapes else _unknown(spec), layout=spec.engine.laid_out,
        padding=laid.tokens if laid else 0,
    )  # fmt: skip


def padding_of(spec: RunSpec, load: Workload, device: str) -> Padding | None:
    """By the buckets of the first epoch; None where rows are packed."""
    if not load.batches:
        return None
    laid = _laid(load.batches, BOUNDS.get(device, BOUNDS["cpu"]), load.together)
    padding = sum(map(sum, laid)) - sum(map(sum, load.batches))
    return Padding(spec.hyper.epochs * padding, max(map(max, laid)))


@lru_cache(maxsize=4)
def _laid(batches: tuple[tuple[int, ...], ...], bounds: Bounds, together: int) -> list[list[int]]:
    return [tokens_laid(batch, bounds, together=together) for batch in batches]


def other_seconds(spec: RunSpec, load: Workload, tokens_per_second: float) -> float:
    """Evaluating, the reference's pass, and answering before and after, where a token without gradients costs a 2.5th
    of a trained one."""
    answered = 2 * load.answered(spec.train.sample_max_tokens)
    return (load.evaluations * load.held_out_tokens + load.reference_tokens + answered) / (
        _FORWARD_SPEED * tokens_per_second
    )


def memory_of(
    spec: RunSpec, load: Workload, *, machine: Machine, shapes: Shapes, adapter: dict[str, Shape] | None
) -> Memory:
    """Bytes of each part, and the worst of the moments that need most.

        weights      P w, w = 4 (float32) or 2 (bfloat16)
        LoRA         trainable 4 A, gradients 4 A, moments 8 A
        all, fp32    trainable 0 (the weights), gradients 4 P, moments 8 P
        all, bf16    masters 4 P, gradients 4 P and 2 P of the backward pass, moments 8 P
        a layer's activations: `layer_bytes`; L of them, or with gradient checkpointing L T H w + one of them
        a padded T counts its padding
        head         2 tiles of fp32 logits, 8 n V, n = min(head_tile, 2^25 / V, positions); all: its gradient, 4 V H
        answers      key-value cache 2 L K w a token, doubled while it grows, and 8 V a row

    Peak: process + weights + trained + slack x (the worst of training, evaluating with all T positions through the
    head, answering, and loading weights of another dtype).
    """
    a, p = shapes.architecture, shapes.parameters
    w = 2 if spec.engine.dtype == "bfloat16" else 4
    trained = sum(math.prod(shape) for shape in adapter.values()) if adapter is not None else p
    full, half = adapter is None, w == 2
    trainable = 4 * trained if not full or half else 0
    gradients = (6 if full and half else 4) * trained
    optimizer = 8 * trained
    most = _most_tokens(spec, shapes, machine.device)
    laid = padding_of(spec, load, machine.device)
    tokens = laid.largest if laid else _micro_batch(load.largest_batch, load.longest_row, most)
    layer = layer_bytes(spec, shapes, tokens, device=machine.device)
    activations = a.layers * tokens * a.hidden * w + layer if spec.engine.gradient_checkpointing else a.layers * layer
    positions = math.ceil(tokens * load.trained_tokens / load.tokens)
    head = _head(spec, shapes, positions, device=machine.device) + (4 * a.vocabulary * a.hidden if full else 0)
    held_out = min(load.held_out_tokens, _micro_batch(load.held_out_tokens, load.longest_held_out, most))
    answers = load.answered(spec.train.sample_max_tokens)
    sampling = 2 * answers * 2 * a.layers * a.key_value * w + load.questions * 8 * a.vocabulary
    evaluating = _head(spec, shapes, held_out, device=machine.device) + held_out * (4 * a.hidden + 2 * a.inner) * w
    converting = shapes.stored_bytes if shapes.stored_bytes != p * w else 0
    steady = p * w + trainable + optimizer
    plain = not is_fused(spec, shapes, machine.device) or bool(spec.model.lora.dropout)
    slack = _SLACK.get(machine.device, _SLACK["cpu"]) if plain else _SLACK_FUSED
    worst = max(gradients + slack * (activations + head), slack * evaluating, sampling, converting - trainable)
    again = p * w + optimizer if full and spec.early_stop else 0  # the best weights are read beside the last ones
    gpu = machine.device == "cuda"
    host = machine.held + _STILL_TO_LOAD
    process = _CUDA_CONTEXT if gpu else host
    peak = process + steady + int(max(worst, again))
    return Memory(
        process=process, weights=p * w, trainable=trainable, gradients=gradients, optimizer=optimizer,
        activations=activations, head=head, sampling=sampling, peak=peak,
        host_peak=host + _CUDA_LIBRARIES + p * w if gpu else peak,
    )  # fmt: skip


def least_memory(spec: RunSpec, *, gpu: bool) -> int | None:
    """Bytes of the machine's memory that a run takes whatever its rows are; None where the model is not here yet."""
    shapes = read_shapes(spec.inputs.base_model, spec.model.revision)
    if shapes is None:
        return None
    device = "cuda" if gpu else "cpu"
    machine = Machine(device, device, cores=1, threads=1, memory=0, memory_free=0, held=_WORKER_HELD)
    one_row = Workload(
        steps=1, tokens=1, trained_tokens=1, largest_batch=1, longest_row=1, held_out_tokens=0, longest_held_out=0,
        questions=0, longest_prompt=0, evaluations=0, checkpoints=1,
    )  # fmt: skip
    return memory_of(spec, one_row, machine=machine, shapes=shapes, adapter=_trained(spec, shapes)).host_peak


def is_fused(spec: RunSpec, shapes: Shapes, device: str) -> bool:
    """Whether the engine gives this model its own layers (`trainer.engine.fused`)."""
    a, engine = shapes.architecture, spec.engine
    known = a.kind in FUSED_KINDS and a.silu
    rows = engine.attention != "sdpa" and engine.laid_out == "packed"
    return known and device == "cpu" and engine.dtype == "float32" and rows


def _most_tokens(spec: RunSpec, shapes: Shapes, device: str) -> int:
    """Of a micro-batch."""
    if spec.engine.laid_out == "padded":
        return BOUNDS.get(device, BOUNDS["cpu"]).tokens
    return FUSED_TOKENS if is_fused(spec, shapes, device) else MICRO_BATCH_TOKENS.get(device, 2048)


def layer_bytes(spec: RunSpec, shapes: Shapes, tokens: int, *, device: str) -> int:
    """What one layer keeps for its backward pass: numbers a token, by what autograd saves of a SwiGLU layer.

    Fused: 2 H (what both norms take), 3 Q (rotated; attention's output row by row, and joined), 2 K, 2 I (gate and up),
    and Q + K before the norms of heads where there are any. Else, and with dropout:
    4 H: both norms' inputs and outputs. 4 Q: query before and after rotation, attention's output row by row and joined.
    3 K: key before and after, value. 4 I: gate, its SiLU, up, their product. All parameters: 2 H + Q + K more (what
    norms multiply by their weights). bfloat16: norms work in fp32, so 2 H + Q + K take 2 bytes more. LoRA: its ranks,
    and with dropout a copy of each layer's input. SDPA over packed rows: a mask of T x T, over padded ones none.
    """
    a, full = shapes.architecture, spec.hyper.lora_rank == 0
    if is_fused(spec, shapes, device) and not spec.model.lora.dropout:
        numbers = 2 * a.hidden + 3 * a.query + 2 * a.key_value + 2 * a.inner
        return 4 * tokens * (numbers + (a.query + a.key_value if shapes.head_norms else 0))
    half = spec.engine.dtype == "bfloat16"
    normed = 2 * a.hidden + a.query + a.key_value
    numbers = 4 * a.hidden + 4 * a.query + 3 * a.key_value + 4 * a.inner + (normed if full else 0)
    bytes_each = numbers * (2 if half else 4) + (2 * normed if half else 0)
    if not full:
        linear = shapes.linear(spec.model.lora.targets)
        bytes_each += 4 * (spec.hyper.lora_rank or 0) * len(linear) // a.layers
        if spec.model.lora.dropout:
            bytes_each += 5 * sum(into for _, into in linear.values()) // a.layers
    masked = spec.engine.attention == "sdpa" and spec.engine.laid_out == "packed"
    mask = 5 * tokens * tokens // a.layers if masked else 0
    return tokens * bytes_each + mask


def sizes_of(spec: RunSpec, load: Workload, *, shapes: Shapes, adapter: dict[str, Shape] | None, device: str) -> Sizes:
    """Bytes of a checkpoint's files: weights, moments (and masters), random state, settings."""
    tensors = adapter if adapter is not None else dict(shapes.tensors)
    half = spec.engine.dtype == "bfloat16" and adapter is None
    kinds = ("exp_avg", "exp_avg_sq", "master") if half else ("exp_avg", "exp_avg_sq")
    state = {f"{kind}.{name}": shape for kind in kinds for name, shape in tensors.items()}
    weights = file_size(tensors, bytes_each=2 if half else 4, metadata={"format": "pt"})
    model = weights + (_ADAPTER_CONFIG if adapter is not None else _MODEL_CONFIG)
    rng = 4 * -(-_RNG_STATE.get(device, 5056) // 3) if adapter is not None else 0
    checkpoint = model + file_size(state) + rng + _STATE_JSON
    kept = min(spec.train.keep_checkpoints + spec.early_stop, load.checkpoints)
    return Sizes(checkpoint=checkpoint, model=model, kept=kept * checkpoint)


def does_not_fit(
    spec: RunSpec, load: Workload, found: Estimate, *, machine: Machine, shapes: Shapes | None
) -> str | None:
    """Why the run cannot fit and what would; None when it fits, or nobody can tell."""
    memory = found.memory
    if memory is None or shapes is None or _fits(memory, found):
        return None
    what, need, have = "memory", memory.peak, found.have
    if memory.peak <= _MARGIN * found.have:
        what, need, have = "host memory", memory.host_peak, found.have_host
    elif machine.device == "cuda":
        what = "GPU memory"
    ways = [
        f"{words} (about {size(other.peak)}{'' if _fits(other, found) else ', still too much'})"
        for words, changed in _ways_out(spec, load)
        if (other := _memory_again(changed, load, machine, shapes)).peak < 0.95 * memory.peak
    ]
    ways = ways or ["a smaller base model"]
    return (
        f"the run needs about {size(need)} of {what} and {size(have)} are free: {spec.base_name} with "
        f"{shapes.parameters:,} parameters takes weights {size(memory.weights)}, training state "
        f"{size(memory.trainable + memory.gradients + memory.optimizer)}, activations {size(memory.activations)}, "
        f"LM head {size(memory.head)}. Ways out: {'; '.join(ways)}; free some memory; or train.over_memory=try to "
        "start it all the same"
    )


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB" if count >= MIB else f"{count:,} B"


def read_estimate(folder: Path) -> Estimate | None:
    """The estimate of the run in `folder`; None when there is none. Raises `pydantic.ValidationError`."""
    path = folder / ESTIMATE
    return Estimate.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _trained(spec: RunSpec, shapes: Shapes) -> dict[str, Shape] | None:
    """The adapter's tensors; None = all parameters are trained."""
    if spec.inputs.warm_start is not None:
        file = Path(spec.inputs.warm_start) / "adapter_model.safetensors"
        return {name: shape for name, (_, shape) in read_header(file).items()} if file.is_file() else {}
    if not spec.hyper.lora_rank:
        return None
    return lora_tensors(shapes.linear(spec.model.lora.targets), spec.hyper.lora_rank)


def _micro_batch(batch: int, longest: int, most: int) -> int:
    """Tokens of the largest micro-batch: a batch is cut where it goes over the budget, a longer row goes alone."""
    return min(batch, max(longest, most))


def _head(spec: RunSpec, shapes: Shapes, positions: int, *, device: str) -> int:
    vocabulary = shapes.architecture.vocabulary
    tile = min(spec.engine.head_tile, MAX_TILE_ELEMENTS // vocabulary)
    if device == "cpu":
        tile = min(tile, max(LEAST_CACHED, CACHED_ELEMENTS // vocabulary))
    return 2 * 4 * max(1, min(tile, positions)) * vocabulary


def _fits(memory: Memory, found: Estimate) -> bool:
    return memory.peak <= _MARGIN * found.have and memory.host_peak <= _MARGIN * found.have_host


def _memory_again(spec: RunSpec, load: Workload, machine: Machine, shapes: Shapes) -> Memory:
    tokens = min(load.largest_batch, max(spec.hyper.batch_tokens, load.longest_row))
    planned = load.batches if tokens == load.largest_batch else ()  # of other batches only the largest is known
    smaller = Workload(**{**load.__dict__, "largest_batch": tokens, "batches": planned})
    return memory_of(spec, smaller, machine=machine, shapes=shapes, adapter=_trained(spec, shapes))


def _ways_out(spec: RunSpec, load: Workload) -> list[tuple[str, RunSpec]]:
    """Settings that take less, each alone and then together, as words and as a run."""
    engine, hyper = spec.engine, spec.hyper
    ways: list[tuple[str, RunSpec]] = []
    half, recompute = {"dtype": "bfloat16"}, {"gradient_checkpointing": True}
    adapter = {"lora_rank": 8, "lora_alpha": 16.0}
    tokens = max(load.longest_row, load.largest_batch // 4)
    if hyper.lora_rank == 0:
        ways.append((f"{spec.job.settings_at}.lora_rank=8", _changed(spec, hyper=adapter)))
    if tokens < load.largest_batch:
        ways.append((f"{spec.job.settings_at}.batch_size={tokens}", _changed(spec, hyper={"batch_tokens": tokens})))
    if not engine.gradient_checkpointing:
        ways.append(("engine.gradient_checkpointing=true", _changed(spec, engine=recompute)))
    if engine.dtype == "float32":
        ways.append(("engine.dtype=bfloat16", _changed(spec, engine=half)))
    if len(ways) > 1:
        fewer = {"batch_tokens": tokens} | (adapter if hyper.lora_rank == 0 else {})
        ways.append(("all of these", _changed(spec, engine=half | recompute, hyper=fewer)))
    return ways


def _changed(spec: RunSpec, **groups: Mapping[str, object]) -> RunSpec:
    return spec.model_copy(
        update={name: getattr(spec, name).model_copy(update=values) for name, values in groups.items()}
    )


def _unknown(spec: RunSpec) -> str:
    return f"{spec.inputs.base_model} has neither safetensors headers nor a config of a known kind on this machine yet"
