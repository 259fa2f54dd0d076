# %% [markdown]
# # 102 · Fine-tuning on real data
#
# Grade-school maths (GSM8K: `question` and `answer` columns) through the job itself: the configuration names the rows
# and how their columns are read, the run's folder tells what happened. Give the file's path:
#
#     python recipes/102_gsm8k_sft.py PATH/train.jsonl [key=value ...]
#
# The tiny model will not learn to reason, but its loss falls, and every token is accounted for. With a GPU and a hub,
# add `model=qwen3_0_6b` and mean it.

# %%
from __future__ import annotations

import json
import sys
from pathlib import Path

from trainer import history
from trainer.__main__ import main
from trainer.runs import home

# %% [markdown]
# ## The job
# `data=gsm8k` maps the columns to prompt and completion, so only the answer is learnt. A tenth of the rows, at most
# 100, are held out by their hash. Here we use the first 600 rows and one epoch, which takes under a minute on a CPU.

# %%
rows, more = Path(sys.argv[1]), sys.argv[2:]
words = [
    "data=gsm8k",
    f"data.train={rows}",
    "data.max_rows=600",
    "job.eval_auto_carveout=true",
    "job.learning_rate=5e-3",
    "job.lora_rank=16",
    "job.batch_size=8192",
    "train.evaluate_every_steps=10",
    "train.sample_rows=1",
    "name=gsm8k",
    *more,
]
status = main(words)
if status:
    sys.exit(status)

# %% [markdown]
# ## What happened
# The ledger's totals add up, and the held-out loss has fallen.

# %%
run = history.find("last")
ledger = json.loads((run / "ledger.json").read_text())
tokens = ledger["totals"]["tokens"]
assert tokens["total"] == tokens["trained"] + tokens["masked"] + tokens["cut"] + tokens["dropped"]
print(f"{ledger['totals']['rows']['used']} rows, {tokens['trained']:,} of {tokens['total']:,} tokens trained")

lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
losses = [line["eval/loss"] for line in lines if "eval/loss" in line]
print("held-out loss:", " ".join(f"{loss:.3f}" for loss in losses), f"(run {run.relative_to(home())})")
assert losses[-1] < losses[0]
