# %% [markdown]
# # 201 · Direct preference optimisation
#
# Two answers to one prompt, of which one is wanted: a pair. DPO raises the wanted answer's likelihood against the
# other's, measured from where the model started. Everything below is what `python -m trainer job=dpo` does, without
# its files; it takes about fifteen seconds on one CPU core. Run it as a program or cell by cell.

# %%
from __future__ import annotations

import re
from dataclasses import replace

from trainer.data.batches import plan_epoch
from trainer.data.datum import Pair
from trainer.data.ledger import Prepared, prepare
from trainer.data.render import Renderer, load_tokenizer
from trainer.engine.base import AdamParams, LoraSpec
from trainer.engine.local import LocalEngine
from trainer.loops.evaluation import Question, answer
from trainer.loops.pair_figures import PairFigures
from trainer.loops.schedule import learning_rate
from trainer.loops.training import datums_of
from trainer.runs import DataSettings, RowSource, shipped

# %% [markdown]
# ## Pairs
# In the shipped ones both answers are right; `copy` and `max` are wanted with a full stop, `reverse` and `min` with an
# exclamation mark. Each side is rendered like a row of fine-tuning: only the answer counts, with its stop token.

# %%
base = str(shipped("models/tiny"))
tokenizer = load_tokenizer(base, None)
engine = LocalEngine(base)
renderer = Renderer(tokenizer, stop_ids=engine.stop_ids)


def read(name: str) -> Prepared:
    source = RowSource(name=name, path=str(shipped(f"datasets/pairs/{name}.jsonl")))
    return prepare(source, DataSettings(), renderer=renderer, max_context=engine.context_length, pairs=True)


train, held_out = read("train"), read("eval")
print(*train.ledger.summary(), sep="\n")

# %% [markdown]
# ## The reference
# What the model says before it learns anything: one pass without gradients. With an adapter the reference is the same
# base with the adapter off, so there is no second model in memory.

# %%
engine.create_model("reference", lora=None, base_only=True)


def with_reference(pairs: list[Pair]) -> list[Pair]:
    data = datums_of(pairs)
    known = [replace(d, reference=p) for d, p in zip(data, engine.forward("reference", data).logprobs, strict=True)]
    return [Pair(known[at], known[at + 1]) for at in range(0, len(known), 2)]


pairs, judged = with_reference(train.datums), with_reference(held_out.datums)

# %% [markdown]
# ## Before
# `preference`: of the held-out pairs, how many have the wanted answer as the likelier one. And the task itself: are the
# digits right, whatever the punctuation?

# %%
rows = [row.answered for row in held_out.rows]
questions = [Question(renderer.prompt_ids(row), row.messages[0]["content"], renderer.reference(row)) for row in rows]


def decode(ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def look(model: str, when: str, **loss: float) -> tuple[float, float]:
    figures, data = PairFigures(), datums_of(judged)
    figures.add(data, engine.forward(model, data, loss="dpo", loss_config=loss))
    said = answer(engine, model, questions, max_tokens=16, decode=decode)
    right = sum(re.sub(r"\D", "", one.given) == re.sub(r"\D", "", one.expected) for one in said) / len(said)
    preferred = figures.values()["preference"]
    print(
        f"{when}: {preferred:.1%} preferred as wanted, digits {right:.1%} right; {said[0].asked!r} -> {said[0].given!r}"
    )
    return preferred, right


_, right_before = look("reference", "before", beta=0.3)

# %% [markdown]
# ## Learn
# L = -log s(beta (D_chosen - D_rejected)), D the log-ratio of an answer to the reference's, summed over its tokens. The
# engine gets chosen, rejected, chosen, rejected, and the sum is divided once, by the pairs of the step. `nll_weight`
# adds the likelihood of the chosen answer.


# %%
def learn(model: str, **loss: float) -> None:
    engine.create_model(model, lora=LoraSpec(rank=8, alpha=16.0), seed=0)
    plan = plan_epoch([pair.length for pair in pairs], batch_tokens=8192, batch_rows=32, seed=0, epoch=0)
    for number, step in enumerate(plan, start=1):
        figures = PairFigures()
        for batch in step:
            data = datums_of(pairs[row] for row in batch)
            figures.add(data, engine.forward_backward(model, data, loss="dpo", loss_config=loss))
        rate = learning_rate(number, len(plan), peak=2e-3, warmup=5, kind="cosine", min_ratio=0.1)
        engine.optim_step(model, AdamParams(rate, max_grad_norm=1.0), denominator=figures.pairs)
        if number in (1, 20, 40, len(plan)):
            now = figures.values()
            print(f"  step {number:2d} of {len(plan)}  loss {now['loss']:.4f}  margin {now['margin']:.2f}")


learn("mine", beta=0.3, nll_weight=1.0)

# %% [markdown]
# ## After

# %%
preferred_after, right_after = look("mine", "after", beta=0.3)
assert preferred_after > 0.95 and right_after > right_before - 0.05

# %% [markdown]
# ## Why the likelihood term
# The paper's loss only looks at the difference: it is as happy to make the rejected answer unlikely as to make the
# chosen one likely, and the two share all tokens but one. Without the term the pairs are preferred as wanted too; look
# at what is left of the digits.

# %%
learn("plain", beta=0.3)
look("plain", "plain", beta=0.3)

# %% [markdown]
# ## From here
# `python -m trainer job=dpo` is the job: resume, checkpoints, held-out figures, the reference kept on disk. Your pairs:
# `job=dpo data.train=pairs.jsonl data.carveout=true`. [202](202_orpo.py) does without a reference.
