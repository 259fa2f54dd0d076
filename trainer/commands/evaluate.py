"""Score answers with an evaluator: a table with confidence intervals, the worst rows, a page, and every result.

    python -m trainer evaluate evaluator=maths                              a worked example, with its own rows
    python -m trainer evaluate evaluator=maths data=rows.jsonl              answers that the rows have already
    python -m trainer evaluate evaluator=maths data=prompts.jsonl model=my-model
    python -m trainer evaluate evaluator=exact_match evaluator.tag=answer data=rows.jsonl
    python -m trainer evaluate evaluator=my_project/ entry=test_x.py::test_x data=rows.jsonl
    python -m trainer evaluate evaluator=reward.py::score data=rows.jsonl

`evaluator=` is the name of an example, a built-in kind, a folder with evaluator.json, a project's folder with `entry=`,
or `file.py::function`; `evaluator.NAME=VALUE` changes a setting. `data=` is a JSONL or JSON file or a gateway data set;
its `question` and `answer` are read as a prompt and its ground truth. A row's answer is its last assistant message or
its completion; where it has none and a model is named, the model answers. Exit status: 0 scored, 1 too many rows
without a usable score, 2 what was typed cannot be done.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluators.broker import Broker, SecretRefused
from evaluators.build import Builder, BuildState
from evaluators.custom import project
from evaluators.custom.running import requires_real
from evaluators.kinds.base import Evaluator, Tools
from evaluators.kinds.llm_judge import JudgeTools
from evaluators.kinds.table import KINDS, make
from evaluators.library import CUSTOM, DESCRIPTION, ROWS, describe, examples, files_of, open_folder
from evaluators.outcomes import Summary, TooManyInvalid, check_invalid_fraction, counts, summarise, worst
from evaluators.protocol import MAX_INVALID_FRACTION, Result
from evaluators.rows import has_answer, question, with_answer
from evaluators.sandbox import SandboxRefused
from evaluators.sandboxed import SandboxRunner
from evaluators.scores import to_json
from trainer.charts import number
from trainer.commands.evaluation_page import PAGE, Page, write_page
from trainer.commands.places import Places
from trainer.commands.telling import Teller
from trainer.compose import compose
from trainer.data.problem import RowProblem
from trainer.data.strict_json import Decoder
from trainer.disk import write_whole
from trainer.errors import UsageError
from trainer.runs import home

_WORDS = ("evaluator", "data", "model", "entry")
_LONGEST_ROW = 4 << 20  # bytes
_BATCH = 16  # prompts sampled together
_TOO_MANY = 1
_CUT = 60  # characters of a text in the table of worst rows

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to score with what, and how much of it."""
    parser.add_argument("words", nargs="+", metavar="key=value", help=f"{', '.join(_WORDS)} and evaluator.SETTING")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N rows (0 = all, default)")
    parser.add_argument("--again", action="store_true",
                        help="answer anew; the row's own answer becomes its ground_truth if it has none")  # fmt: skip
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="worst rows shown (default: %(default)s)")
    parser.add_argument("--max-invalid-fraction", type=float, default=MAX_INVALID_FRACTION, metavar="SHARE",
                        help="of rows without usable score; above it the exit status is 1 (%(default)s)")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.0, help="of the model; 0 = greedy (default)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and bootstrap (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: a new one in evaluations/)")
    parser.add_argument("--gateway", default="embedded", help="where names are looked up (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Score, print, write."""
    words, settings = _typed(options.words)
    with SandboxRunner() as runner:
        try:
            evaluator = _evaluator(words, settings, _tools(settings, words, runner))
            rows = _rows(words, options)
            results = evaluator.evaluate(rows, groups=[question(row) for row in rows])
        except (SandboxRefused, SecretRefused) as error:
            raise UsageError(str(error)) from error
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from error
    summary = summarise(results, seed=options.seed)
    refusal = _refusal(results, options.max_invalid_fraction)
    folder = _folder(options.out, words["evaluator"])
    _write(folder, Page(words=words, rows=rows, results=results, summary=summary, refusal=refusal))
    for line in _lines(rows, results, summary, worst_rows=options.worst):
        print(line)
    print(f"results  {folder / 'results.jsonl'}\nreport   {folder / PAGE}")
    if refusal:
        print(f"too many rows have no usable score: {refusal}")
        return _TOO_MANY
    return 0


def _typed(typed: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """(words, settings of the evaluator)."""
    words: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for word in typed:
        key, found, value = word.partition("=")
        if not found or not value:
            raise UsageError(f"{word!r} is not key=value; the keys are {', '.join(_WORDS)} and evaluator.SETTING")
        if key.startswith("evaluator."):
            settings[key.removeprefix("evaluator.")] = _value(value)
        elif key in _WORDS:
            words[key] = value
        else:
            raise UsageError(f"{key!r} is none of {', '.join(_WORDS)} and evaluator.SETTING")
    if "evaluator" not in words:
        raise UsageError(f"evaluator= is missing; examples: {', '.join(examples())}")
    return words, settings


def _value(text: str) -> Any:
    """A setting as JSON where it is JSON (numbers, true, lists), else as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tools(settings: dict[str, Any], words: dict[str, str], runner: SandboxRunner) -> Tools:
    """The sandbox, and secrets from environment variables: only the one that the judge's settings name."""
    named = settings.get("key_env") or _described(words).get("settings", {}).get("key_env") or ""
    broker = Broker(os.environ.get, usable=[named] if named else [])
    return Tools(runner, JudgeTools(broker.spend))


def _described(words: dict[str, str]) -> dict[str, Any]:
    folder = examples().get(words["evaluator"], Path(words["evaluator"]).expanduser())
    return describe(folder) if (folder / DESCRIPTION).is_file() else {}


def _evaluator(words: dict[str, str], settings: dict[str, Any], tools: Tools) -> Evaluator:
    name = words["evaluator"]
    folder = Path(name).expanduser()
    if "entry" in words or "::" in name:
        if settings:
            raise UsageError(f"evaluator={name} has no settings; given: {', '.join(settings)}")
        return _of_files(name, words.get("entry", ""), tools)
    if (folder / DESCRIPTION).is_file():
        return open_folder(folder, tools, changes=settings)
    if name in examples() and (name not in KINDS or "data" not in words):
        return open_folder(examples()[name], tools, changes=settings)
    if name in KINDS:
        return make(name, settings, tools)
    raise UsageError(
        f"evaluator={name}: no example ({', '.join(examples())}), no built-in kind ({', '.join(KINDS)}), no folder "
        f"with {DESCRIPTION} (kinds: also {', '.join(CUSTOM)}), no project's folder and entry=, no file.py::function"
    )


def _of_files(name: str, entry: str, tools: Tools) -> Evaluator:
    """A project's folder with an entry point, or one file."""
    path, _, function = name.partition("::")
    place = Path(path).expanduser()
    if function and place.is_file():
        files, entry = {place.name: place.read_bytes()}, f"{place.name}::{function}"
    elif entry and place.is_dir():
        files = files_of(place)
    else:
        raise UsageError(f"evaluator={name}: there is no {'file' if function else 'folder'} {path!r}")
    return project.evaluator(files, entry, tools.sandbox("project"), python=_python(files))


def _python(files: dict[str, bytes]) -> str | None:
    """The interpreter of the environment that requirements.txt asks for; None = a bare one."""
    requirements = files.get(project.REQUIREMENTS, b"").decode("utf-8", "replace")
    builder = Builder(home() / "cache" / "evaluator_environments")
    build = builder.build(requirements, tell=lambda one: print(f"building an environment; log: {one.log}"))
    if build.state is not BuildState.ACTIVE:
        raise UsageError(f"the environment cannot be built: {build.message}; log: {build.log}")
    if build.python and requires_real(requirements):
        print("requirements.txt names eval-protocol: the package itself is used, not the stand-in")
    return build.python


def _rows(words: dict[str, str], options: argparse.Namespace) -> list[Row]:
    """The rows, each with an answer."""
    path = _data(words, options.gateway)
    rows = _read(path)
    rows = rows[: options.limit] if options.limit else rows
    if not rows:
        raise UsageError(f"{path} has no rows")
    if options.again:
        if "model" not in words:
            raise UsageError("--again needs model=, which answers anew")
        rows = [_asked_again(row) for row in rows]
    lacking = [index for index, row in enumerate(rows) if not has_answer(row)]
    if lacking and "model" not in words:
        raise UsageError(
            f"{len(lacking)} of {len(rows)} rows have no answer (row {lacking[0] + 1} is the first); name a model with "
            "model=, or end each row's messages with the assistant's"
        )
    if lacking:
        answers = _generate([rows[index] for index in lacking], words["model"], options)
        for index, text in zip(lacking, answers, strict=True):
            rows[index] = with_answer(rows[index], text)
    return rows


def _data(words: dict[str, str], gateway: str) -> Path:
    name = words.get("data")
    if name is None:
        folder = examples().get(words["evaluator"], Path(words["evaluator"]).expanduser())
        if not (folder / ROWS).is_file():
            raise UsageError("data= is missing: a JSONL or JSON file, or a gateway data set")
        return folder / ROWS
    places = Places(Teller(compose(["data=quickstart", f"gateway={gateway}"]).gateway).client)
    path = Path(places.rows(name, what="data").path)
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix in (".jsonl", ".json"))
        if len(found) != 1:
            raise UsageError(f"data={name}: {path} holds {len(found)} JSONL or JSON files; name one")
        return found[0]
    if not path.is_file() or path.suffix not in (".jsonl", ".json", ".ndjson"):
        raise UsageError(f"data={name}: give a .jsonl or .json file, or a gateway data set")
    return path


def _read(path: Path) -> list[Row]:
    """Rows with every field they have. Raises `UsageError` naming the line that is no row."""
    decoder, found = Decoder(), []
    if path.suffix == ".json":
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise UsageError(f"{path}: not JSON: {error}") from None
        items = document if isinstance(document, list) else [document]
        lines = [(number, json.dumps(item)) for number, item in enumerate(items, 1)]
    else:
        text = path.read_bytes().decode("utf-8-sig", "strict")
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number_, line in lines:
        if len(line) > _LONGEST_ROW:
            raise UsageError(f"{path}:{number_}: a row longer than {_LONGEST_ROW:,} bytes")
        try:
            found.append(_asked(decoder.decode(line)))
        except RowProblem as problem:
            raise UsageError(str(problem.at(str(path), number_))) from None
    return found


def _asked(row: Row) -> Row:
    """Rows of the form question, answer (GSM8K's) as a prompt and its truth; others as they are."""
    if "messages" in row or "prompt" in row or not isinstance(row.get("question"), str):
        return row
    return {"messages": [{"role": "user", "content": row["question"]}], "ground_truth": row.get("answer"), **row}


def _asked_again(row: Row) -> Row:
    """The row without its answer, which is the truth where there is no other."""
    messages = row.get("messages")
    if not has_answer(row):
        return row
    if isinstance(messages, list):
        *asked, last = messages
        changed: Row = {**row, "messages": asked}
        own = last.get("content")
    else:
        changed = {key: value for key, value in row.items() if key != "completion"}
        own = row["completion"]
    return {"ground_truth": own, **changed} if row.get("ground_truth") is None else changed


def _generate(rows: list[Row], model: str, options: argparse.Namespace) -> list[str]:
    """The model's answers, through the engine."""
    # The tensor libraries load here, after everything that was typed has been checked.
    from trainer.commands.chat import find_weights  # noqa: PLC0415
    from trainer.data.render import Renderer, load_tokenizer  # noqa: PLC0415
    from trainer.engine.base import SamplingParams  # noqa: PLC0415
    from trainer.engine.local import LocalEngine  # noqa: PLC0415

    base, adapter = find_weights(model, options.gateway)
    tokens_of = str(adapter) if adapter and (adapter / "tokenizer.json").is_file() else base
    engine = LocalEngine(base)
    engine.create_model("model", lora=None, base_only=adapter is None, warm_start=adapter)
    renderer = Renderer(load_tokenizer(tokens_of, None), stop_ids=engine.stop_ids)
    params = SamplingParams(max_new_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    prompts = [renderer.chat_ids(_conversation(row), tools=row.get("tools") or ()) for row in rows]
    texts: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        for [completion] in engine.sample("model", prompts[start : start + _BATCH], params):
            texts.append(str(renderer.tokenizer.decode(completion.tokens.tolist(), skip_special_tokens=True)))
        print(f"answered {len(texts)} of {len(prompts)}", flush=True)
    return texts


def _conversation(row: Row) -> list[Any]:
    if isinstance(row.get("messages"), list) and row["messages"]:
        return row["messages"]
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    raise UsageError("a row has neither messages nor a prompt; a model cannot answer it")


def _refusal(results: list[Result], limit: float) -> str:
    try:
        check_invalid_fraction(results, limit)
    except TooManyInvalid as error:
        return str(error)
    return ""


def _folder(out: Path | None, name: str) -> Path:
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        kept = "".join(char if char.isalnum() or char in "-_" else "-" for char in name)[-40:].strip("-")
        out = home() / "evaluations" / f"{stamp}-{kept}"
    out.mkdir(parents=True, exist_ok=True)
    return out.absolute()


def _write(folder: Path, page: Page) -> None:
    lines = [json.dumps({**row, **_details(result)}, ensure_ascii=False)
             for row, result in zip(page.rows, page.results, strict=True)]  # fmt: skip
    write_whole(folder / "results.jsonl", ("\n".join(lines) + "\n").encode("utf-8", "replace"))
    write_page(page, folder)


def _details(result: Result) -> Row:
    """What a scored row gains: `evals` and `eval_details` as eval-protocol writes them, and how it ended."""
    found: Row = {"eval_status": result.status.value, "eval_seconds": round(result.seconds, 6),
                  "eval_tier": result.tier.value}  # fmt: skip
    if result.message:
        found["eval_message"] = result.message
    if result.score is not None:
        found["eval_details"] = to_json(result.score)
    if counts(result) and result.score is not None:
        found["evals"] = {"score": result.score.score}
    return found


def _lines(rows: list[Row], results: list[Result], summary: Summary, *, worst_rows: int) -> list[str]:
    table = [("score", summary.score), *summary.metrics.items()]
    width = max(len(name) for name, _ in table)
    lines = [f"{'':{width}}  {'mean':>8}  {'95 % interval':>17}  {'rows':>6}"]
    for name, found in table:
        if found is None:
            lines.append(f"{name:{width}}  {'none':>8}")
            continue
        bounds = f"{number(found.low)} to {number(found.high)}"
        lines.append(f"{name:{width}}  {number(found.mean):>8}  {bounds:>17}  {found.count:>6,}  ({found.method})")
    lines.append("status   " + ", ".join(f"{name} {count:,}" for name, count in summary.histogram.items()))
    if summary.masked:
        lines.append(f"masked   {summary.masked:,} of {summary.rows:,} rows have no usable score and are in no mean")
    for index in worst(results, worst_rows):
        result = results[index]
        value = number(result.score.score) if counts(result) and result.score else result.status.value
        why = (result.score.reason if result.score else "") or result.message
        lines.append(f"row {index + 1:<5}{value:>10}  {_one_line(why)}  | {_one_line(question(rows[index]))}")
    return lines


def _one_line(text: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(plain.split())[:_CUT]
