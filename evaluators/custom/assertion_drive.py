"""Put into the jail beside a legacy code assertion: runs its code with the row's values, and says what came of it.

The code sees `output` (the answer), `messages`, `ground_truth` and `row`. What counts, in this order: the return of its
function `evaluate` or `assertion`, its variable `result`, else what it printed. Only the standard library.
"""

# ruff: noqa: PTH100, PTH118, PTH120, PTH123
# pyright: reportMissingImports=false

import contextlib
import io
import json
import os


def score(row):
    """The assertion's score: with an expected output 1 where the outcome is that text, else the outcome itself."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "assertion.py"), encoding="utf-8") as file:
        source = file.read()
    with open(os.path.join(here, "expected.json"), encoding="utf-8") as file:
        expected = json.load(file)
    names = {"__name__": "assertion", "row": row, "messages": row.get("messages"), "output": _output(row),
             "ground_truth": row.get("ground_truth")}  # fmt: skip
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "assertion.py", "exec"), names)  # noqa: S102 - this is the jail
        function = names.get("evaluate") or names.get("assertion")
        found = function(row["messages"], ground_truth=row.get("ground_truth")) if callable(function) else None
    if found is None:
        found = names["result"] if "result" in names else printed.getvalue()
    if expected is not None:
        right = str(found).strip() == expected.strip()
        return {"score": float(right), "reason": f"the outcome is {str(found).strip()[:100]!r}"}
    if isinstance(found, bool):
        return {"score": float(found), "reason": "holds" if found else "does not hold"}
    if isinstance(found, str):
        raise ValueError(
            "the code has no outcome: define evaluate(messages, ground_truth=None), set result, or give expectedOutput"
        )
    return found


def check(row):
    """1 where the code compiles, else 0 with the reason."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "assertion.py"), encoding="utf-8") as file:
        source = file.read()
    try:
        compile(source, "assertion.py", "exec")
    except (SyntaxError, ValueError) as error:
        return {"score": 0.0, "reason": f"{type(error).__name__}: {error}"}
    return {"score": 1.0, "reason": "compiles"}


def _output(row):
    messages = row.get("messages") or []
    content = messages[-1].get("content") if messages else row.get("completion")
    return content if isinstance(content, str) else ""
