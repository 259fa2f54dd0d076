# %% [markdown]
# # 101 · Your first supervised fine-tuning
#
# The whole idea on one page: rows become datums, an engine learns them, and the model answers. Everything below is
# what `python -m trainer` does, without its files, its checkpoints and its gateway. Run it as a program
# (`python recipes/101_first_sft.py`) or cell by cell; it takes about ten seconds on one CPU core.

# %%
from __future__ import annotations

from trainer.data.batches import plan_epoch
from trainer.data.ledger import prepare
from trainer.data.render import Renderer, load_tokenizer
from trainer.engine.base import AdamParams, LoraSpec, SamplingParams
from trainer.engine.local import LocalEngine
from trainer.loops.evaluation import Question, answer, exact_match
from trainer.loops.schedule import learning_rate
from trainer.runs import DataSettings, RowSource, shipped

# %% [markdown]
# ## A base model
# The one that ships copies and reverses digits. Any folder or hub id that `from_pretrained` takes would do.
# The engine holds its weights once; we put one small adapter on them.

# %%
base = str(shipped("models/tiny"))
tokenizer = load_tokenizer(base, None)
engine = LocalEngine(base)
engine.create_model("mine", lora=LoraSpec(rank=8, alpha=16.0), seed=0)

# %% [markdown]
# ## Rows to datums
# Each row is rendered by the chat template and tokenised once; only what the assistant wrote is learnt, with the stop
# token that ends it. The ledger says what became of every token.

# %%
renderer = Renderer(tokenizer, stop_ids=engine.stop_ids)


def read(name: str):
    source = RowSource(name=name, path=str(shipped(f"datasets/quickstart/{name}.jsonl")))
    return prepare(source, DataSettings(), renderer=renderer, max_context=engine.context_length)


train, held_out = read("train"), read("eval")
print(*train.ledger.summary(), sep="\n")

# %% [markdown]
# ## Before
# The task is to sort digits, which the base has never seen.

# %%
questions = [
    Question(renderer.prompt_ids(row), row.messages[0]["content"], renderer.reference(row)) for row in held_out.rows
]


def decode(ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


before = answer(engine, "mine", questions[:50], max_tokens=16, decode=decode)
print(f"before: {exact_match(before):.0%} right; {before[0].asked!r} -> {before[0].given!r}")

# %% [markdown]
# ## Learn
# The plan says which rows meet in which optimizer step. `forward_backward` adds up the gradient of the loss **sum**;
# `optim_step` divides it once, by the step's trained tokens, and updates. That is all of supervised fine-tuning.

# %%
plan = [
    (epoch, step)
    for epoch in range(2)
    for step in plan_epoch([d.length for d in train.datums], batch_tokens=8192, batch_rows=32, seed=0, epoch=epoch)
]
for number, (_, step) in enumerate(plan, start=1):
    loss = trained = 0.0
    for batch in step:
        data = [train.datums[row] for row in batch]
        loss += engine.forward_backward("mine", data).metrics["loss:sum"]
        trained += sum(datum.trained for datum in data)
    rate = learning_rate(number, len(plan), peak=1e-2, warmup=30, kind="cosine", min_ratio=0.1)
    engine.optim_step("mine", AdamParams(rate, beta2=0.98, max_grad_norm=1.0), denominator=trained)
    if number % 50 == 0 or number == 1:
        print(f"step {number:3d} of {len(plan)}  loss {loss / trained:.4f}")

# %% [markdown]
# ## After

# %%
after = answer(engine, "mine", questions, max_tokens=16, decode=decode)
print(f"after: {exact_match(after):.0%} of {len(after)} held-out rows right; {after[0].asked!r} -> {after[0].given!r}")

# %% [markdown]
# And it still knows what it knew, because one row in four rehearsed it:

# %%
for asked in ("hello", "reverse 4729"):
    prompt = renderer.chat_ids([{"role": "user", "content": asked}])
    ((said,),) = engine.sample("mine", [prompt], SamplingParams(max_new_tokens=40, temperature=0.0))
    print(f"{asked!r} -> {decode(said.tokens.tolist())!r}")

# %% [markdown]
# ## From here
# `python -m trainer` runs this as a job: with a description that can be run again, exact resume, checkpoints, metrics,
# and a gateway that knows the job and the model. `python -m trainer --help` says how.
