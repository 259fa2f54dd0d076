"""From a run's description to what its loop learns from: rows read, rendered, counted, held out, and let through."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.data import gates
from trainer.data import ledger as ledgers
from trainer.data.datum import Example
from trainer.data.ledger import Ledger
from trainer.data.model_card import Declared, declared
from trainer.data.render import Renderer, load_tokenizer
from trainer.data.rows import Row
from trainer.loops.evaluation import Question
from trainer.loops.training import Material, datums_of
from trainer.runs import RunSpec

TRAIN_LEDGER, HELD_OUT_LEDGER = "ledger.json", "ledger.held_out.json"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What reading gave. `ledgers` by file name; `context_length` is the base model's."""

    material: Material
    renderer: Renderer
    ledgers: dict[str, Ledger]
    context_length: int

    @property
    def decode(self) -> Callable[[list[int]], str]:
        """Ids to text, special tokens left out."""
        tokenizer = self.renderer.tokenizer
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def open_renderer(spec: RunSpec) -> tuple[Renderer, Declared]:
    """A run's renderer, and what its base model declares. Raises `ValueError` for a model that cannot be read."""
    model = declared(spec.inputs.base_model, spec.model.revision)
    tokenizer = load_tokenizer(spec.inputs.base_model, spec.model.revision)
    asked = spec.job.max_context_length
    if asked and asked > model.context_length:
        raise ValueError(
            f"max_context_length: {asked} is more than the {model.context_length} positions of {spec.base_name}; "
            f"set it to {model.context_length} or less, or leave it unset"
        )
    renderer = Renderer(tokenizer, spec.job.jinja_template, stop_ids=model.stop_ids or None)
    return renderer, model


def read_material(spec: RunSpec) -> Prepared:
    """Read all that `spec.inputs` names. Raises `ValueError` for what cannot be used, with the way out."""
    renderer, model = open_renderer(spec)
    longest = min(spec.hyper.max_context, model.context_length)
    pairs = spec.kind == "dpo"
    train = ledgers.prepare(spec.inputs.train, spec.data, renderer=renderer, max_context=longest, pairs=pairs)
    found = {TRAIN_LEDGER: train.ledger}
    _check_batch(spec, train)
    if spec.job.jinja_template and all(row.answered.kind != "chat" for row in train.rows):
        train.ledger.remarks.append("jinja_template is not used: none of the rows is a chat")
    datums, rows = train.datums, train.rows
    if spec.inputs.evaluation:
        settings = spec.data.model_copy(update={"max_rows": None})
        held_out = ledgers.prepare(
            spec.inputs.evaluation, settings, renderer=renderer, max_context=longest, min_rows=1, pairs=pairs
        )
        found[HELD_OUT_LEDGER] = held_out.ledger
        held, held_rows = held_out.datums, held_out.rows
    elif spec.carveout:
        together = train.hashes if spec.data.gates.overlap_prompts == 1 else train.prompts
        kept, out = ledgers.carve_out(
            together, spec.data.carveout_fraction, max_rows=spec.data.carveout_max_rows, seed=spec.train.seed
        )
        train.ledger.hold_out(out)
        held, held_rows = [datums[row] for row in out], [rows[row] for row in out]
        datums, rows = [datums[row] for row in kept], [rows[row] for row in kept]
    else:
        held, held_rows = [], []
    gates.check(train.ledger, spec.data.gates, more=gates.overlap(rows, held_rows, spec.data.gates))
    if HELD_OUT_LEDGER in found:
        gates.check(found[HELD_OUT_LEDGER], spec.data.gates)
    material = Material(
        datums, held, _questions(spec, renderer, held_rows),
        place=_places(rows), probes=[row.answered for row in rows[: spec.train.parity_prompts]],
    )  # fmt: skip
    _check_ids(spec, [*datums, *held], model.vocabulary)
    return Prepared(material, renderer, found, model.context_length)


def _check_batch(spec: RunSpec, train: ledgers.Prepared) -> None:
    """Raise `ValueError` for a row that no batch can hold, naming it by where it was read."""
    room = spec.hyper.batch_tokens
    over = [index for index, datum in enumerate(train.datums) if datum.length > room]
    if over:
        longest = max(over, key=lambda index: train.datums[index].length)
        row, length = train.rows[longest], train.datums[longest].length
        raise ValueError(
            f"{row.file}:{row.line}: the row has {length:,} tokens, more than the {room:,} of a batch ({len(over):,} "
            f"such rows): raise batch_size (batchSize) to at least {length}, or leave it unset"
        )


def _check_ids(spec: RunSpec, examples: Sequence[Example], vocabulary: int) -> None:
    """Raise `ValueError` for a tokenizer that makes ids which the model has no embedding for."""
    highest = max(max(int(one.tokens.max()), int(one.targets.max())) for one in datums_of(examples))
    if highest >= vocabulary:
        raise ValueError(
            f"{spec.base_name}: its tokenizer makes ids up to {highest} of these rows, and the model has embeddings "
            f"for 0 to {vocabulary - 1} (vocab_size {vocabulary}): the tokenizer is another model's, or tokens were "
            "added to it; give a model whose embeddings were resized to its tokenizer"
        )


def _places(rows: Sequence[Row]) -> Callable[[int], str]:
    """Where each row was read, as file:line, in 16 bytes a row."""
    files: dict[str, int] = {}
    codes = array("q", [files.setdefault(row.file, len(files)) for row in rows])
    lines = array("q", [row.line for row in rows])
    names = list(files)
    return lambda index: f"{names[codes[index]]}:{lines[index]}"


def _questions(spec: RunSpec, renderer: Renderer, rows: Sequence[Row]) -> list[Question]:
    """The held-out rows that are answered before and after: those that have a prompt and fit the context."""
    wanted = max(spec.train.score_rows, spec.train.sample_rows)
    questions: list[Question] = []
    for row in (one.answered for one in rows):
        if len(questions) == wanted:
            break
        if row.kind != "text":
            asked = row.messages[-2]["content"] if row.kind == "chat" else row.prompt
            questions.append(Question(renderer.prompt_ids(row), str(asked or ""), renderer.reference(row)))
    return questions
