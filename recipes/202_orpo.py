# %% [markdown]
# # 202 · Preferences without a reference (ORPO)
#
# ORPO adds to the likelihood of the chosen answer an odds ratio against the rejected one. No reference model, no
# second pass: fine-tuning and preference in one. Here it is run as the job that it is, with a folder that tells
# afterwards what happened; about twenty seconds on one CPU core.
#
#     python recipes/202_orpo.py [key=value ...]

# %%
from __future__ import annotations

import json
import re
import sys

from trainer import history
from trainer.__main__ import main
from trainer.runs import RunSpec

# %% [markdown]
# ## The job
# It is the gateway's `dpoJob` with `lossConfig.method: ORPO`. Without a word about data, `job=orpo` trains on the
# shipped pairs. Lambda is the weight of the odds ratio: the hosted gateway's 1.0 unless set, where the paper has 0.1.

# %%
status = main(["job=orpo", "name=orpo", *sys.argv[1:]])
if status:
    sys.exit(status)

# %% [markdown]
# ## What was trained
# `run.json` has the objective with every constant, not only its name.

# %%
run = history.find("last")
objective = RunSpec.load(run).objective
print(f"\n{objective['name']}: {objective['equation']}")
print(f"constants {objective['constants']}, {objective['denominator']}")

# %% [markdown]
# ## Before and after
# Of the held-out pairs, how many have the chosen answer as the likelier one; and whether the digits of the answers stay
# right, whatever their punctuation.

# %%
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
preferred = [line["eval/preference"] for line in lines if "eval/preference" in line]
print("preferred as chosen:", " ".join(f"{share:.1%}" for share in preferred))

answers = json.loads((run / "samples.json").read_text())


def digits_right(when: str) -> float:
    said = answers[when]
    return sum(re.sub(r"\D", "", one["given"]) == re.sub(r"\D", "", one["expected"]) for one in said) / len(said)


print(f"digits right: {digits_right('before'):.1%} before, {digits_right('after'):.1%} after")
for one in answers["after"][:4]:
    print(f"  {one['asked']!r} -> {one['given']!r}")
assert preferred[0] < 0.6 and preferred[-1] > 0.95
assert digits_right("after") > digits_right("before") - 0.05
