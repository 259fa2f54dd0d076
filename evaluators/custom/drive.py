"""Put into the jail beside an uploaded project: calls its `@evaluation_test` as the official worker does.

Rows become `EvaluationRow`s by the test's own dataset adapter, with the answers that they already have; the decorated
function is called with one row, or with all rows of its group. Works with the real package and with the stand-in; only
the standard library otherwise. Runs in the jail and nowhere else.
"""

# ruff: noqa: PTH100, PTH109, PTH112, PTH118, PTH119, PTH120, PTH123, PTH208, PLC0415
# pyright: reportMissingImports=false

import asyncio
import importlib
import inspect
import json
import os
import sys

_STEPS = 100_000  # step outputs of row i are numbered from i * _STEPS
_SETTINGS = "EVALUATOR_ENTRY"


def score(row):
    """One row, or `{"__rows__": [...]}`: then metric "i" is row i's score, "i/name" its metrics."""
    function, mode = _function()
    if "__rows__" in row:
        return _packed(_call(function, [_row(function, one) for one in row["__rows__"]]))
    if mode != "pointwise":
        return _result(_call(function, [_row(function, row)])[0])
    return _result(_call(function, _row(function, row)))


def describe(row):
    """The test's mode as a score: 0 pointwise, 1 groupwise, 2 all. Importing the project is the proof that it works."""
    mode = _function()[1]
    return {"score": ("pointwise", "groupwise", "all").index(mode), "reason": mode}


def _function():
    path, name = os.environ[_SETTINGS].split("::")
    module = path.removesuffix(".py").replace("/", ".")
    folder = os.path.dirname(os.path.join(os.path.dirname(os.path.abspath(__file__)), path))
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as pytest does
        module = os.path.basename(path).removesuffix(".py")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    marked = getattr(found, "_metainfo", None)
    return found, (marked or {}).get("mode", "pointwise")


def _row(function, row):
    from eval_protocol.models import EvaluationRow, Message

    adapter = getattr(getattr(function, "__ep_params__", None), "dataset_adapter", None)
    if adapter is None:
        found = EvaluationRow(**_known(row))
    else:
        rows = adapter([_known(row)])
        if len(rows) != 1:
            raise ValueError("the dataset adapter made " + str(len(rows)) + " rows of one; it must make one")
        found = rows[0]
    answer = _answer(row)
    if answer is not None and (not found.messages or found.messages[-1].role != "assistant"):
        found.messages.append(Message(role="assistant", content=answer))
    return found


def _known(row):
    """Without what an earlier evaluation added to the row."""
    return {name: value for name, value in row.items() if name not in ("evals", "eval_details", "evaluation_result")}


def _answer(row):
    messages = row.get("messages") or []
    if messages and messages[-1].get("role") == "assistant":
        return messages[-1].get("content")
    return row.get("completion")


def _call(function, argument):
    returned = function(argument)
    return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned):
    return await returned


def _result(row):
    found = row.evaluation_result
    if found is None:
        raise ValueError("the test returned a row without evaluation_result; set row.evaluation_result")
    return found


def _packed(rows):
    metrics, steps = {}, []
    for index, row in enumerate(rows):
        found = _result(row)
        valid = found.is_score_valid and not found.error
        reason = found.reason or found.error or ""
        metrics[str(index)] = {"score": found.score, "is_score_valid": valid, "reason": reason}
        for name, metric in (found.metrics or {}).items():
            metrics[f"{index}/{name}"] = {
                "score": metric.score, "is_score_valid": metric.is_score_valid, "reason": metric.reason or "",
            }  # fmt: skip
        for step in found.step_outputs or ():
            steps.append({"step_index": index * _STEPS + int(step.step_index), "base_reward": step.base_reward,
                          "terminated": step.terminated})  # fmt: skip
    return {"score": len(rows), "metrics": metrics, "step_outputs": steps}


def session(row):
    """All rows through a pytest session of the entry, as the official worker does; needs the real package.

    Rows in by EP_JSONL_PATH, results out by EP_OUTPUT_DIR/experiment_results/*.jsonl, in the order of their row ids.
    """
    import pytest

    place = os.getcwd()
    rows = []
    for index, one in enumerate(row["__rows__"]):
        kept = _known(one)
        kept["input_metadata"] = {**(kept.get("input_metadata") or {}), "row_id": str(index)}
        rows.append(json.dumps(kept))
    with open("rows.jsonl", "w", encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n")
    os.environ.update(EP_JSONL_PATH=os.path.join(place, "rows.jsonl"), EP_OUTPUT_DIR=place, EP_NO_UPLOAD="1",
                      EP_USE_NO_OP_ROLLOUT_PROCESSOR="1")  # fmt: skip
    path, name = os.environ[_SETTINGS].split("::")
    root = os.path.dirname(os.path.abspath(__file__))
    target = os.path.join(root, path) + "::" + name
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", root, target])
    found = _experiment(place)
    missing = [index for index in range(len(rows)) if str(index) not in found]
    if missing:
        raise RuntimeError(f"pytest ended with {int(status)}; {len(missing)} of {len(rows)} rows have no result")
    return {"score": len(rows), "metrics": _flat([found[str(index)] for index in range(len(rows))])}


def _experiment(place):
    """Row id -> eval_details, from the result files. A row with several runs keeps its last."""
    found = {}
    folder = os.path.join(place, "experiment_results")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                found[row["input_metadata"]["row_id"]] = row["eval_details"]
    return found


def _flat(details):
    metrics = {}
    for index, one in enumerate(details):
        metrics[str(index)] = {name: one[name] for name in ("score", "is_score_valid", "reason")}
        for name, metric in one["metrics"].items():
            metrics[f"{index}/{name}"] = {name: metric[name] for name in ("score", "is_score_valid", "reason")}
    return metrics
