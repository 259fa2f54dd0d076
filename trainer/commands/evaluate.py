"""Score answers with an evaluator: a table with confidence intervals, the worst rows, a page, and every result.

    python -m trainer evaluate evaluator=maths                              a worked example, with its own rows
    python -m trainer evaluate evaluator=maths data=rows.jsonl              answers that the rows have already
    python -m trainer evaluate evaluator=maths data=prompts.jsonl model=my-model
    python -m trainer evaluate evaluator=exact_match evaluator.tag=answer data=rows.jsonl
    python -m trainer evaluate evaluator=my_project/ entry=test_x.py::test_x data=rows.jsonl
    python -m trainer evaluate evaluator=reward.py::score data=rows.jsonl
    python -m trainer evaluate evaluator=my-evaluator/versions/good data=rows.jsonl     as the gateway has it

`evaluator=` is the name of an example, a built-in kind, a folder with evaluator.json, a project's folder with `entry=`,
`file.py::function`, or an evaluator of the gateway (an id or `accounts/A/evaluators/E`; with `/versions/V` at that
revision or alias); `evaluator.NAME=VALUE` changes a setting. `data=` is a JSONL or JSON file or a gateway data set;
its `question` and `answer` are read as a prompt and its ground truth. A row's answer is its last assistant message or
its completion; where it has none and a model is named, the model answers. Exit status: 0 scored, 1 too many rows
without a usable score, 2 what was typed cannot be done.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evaluators.broker import SecretRefused
from evaluators.library import ROWS, Weighted, examples
from evaluators.outcomes import Summary, TooManyInvalid, check_invalid_fraction, counts, summarise, worst
from evaluators.protocol import MAX_INVALID_FRACTION
from evaluators.rows import Row, has_answer, question
from evaluators.sandbox import SandboxRefused
from evaluators.sandboxed import SandboxRunner
from trainer.charts import number
from trainer.commands.chat import find_weights
from trainer.commands.evaluation_page import PAGE, WORST, Page, write_page
from trainer.commands.evaluators_named import Named, open_named
from trainer.commands.places import Places
from trainer.commands.telling import Teller, add_gateway, gateway_asked
from trainer.data.problem import RowProblem
from trainer.errors import UsageError
from trainer.evaluation_answers import Answerer
from trainer.evaluation_rows import Rows
from trainer.evaluation_run import AnswerSettings, ModelPlace
from trainer.evaluation_sandbox import judge_of, new_runner
from trainer.evaluation_scoring import Found, Scoring, Unscorable
from trainer.gateway.errors import GatewayError
from trainer.runs import home
from trainer.scored_rows import ANSWERS, SCORES, Results

RESULTS = "results.jsonl"
_WORDS = ("evaluator", "data", "model", "entry")
_TOLD_SECONDS = 10.0  # between two words on how far it is
_TOO_MANY = 1
_CUT = 60  # characters of a text in the table of worst rows


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
    add_gateway(parser)


def run(options: argparse.Namespace) -> int:
    """Score, print, write."""
    words, settings = _typed(options.words)
    _check_numbers(options)
    answers = _answer_settings(options)
    with _runner() as runner:
        try:
            evaluator = open_named(words, settings, runner, gateway=options.gateway)
        except (SandboxRefused, SecretRefused, ValueError) as error:
            raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
        try:
            rows, total, lacking = _rows(words, options)
            answerer = partial(_answerer, _place(words, options, lacking), answers) if lacking else None
            scoring = _scoring(evaluator, rows, options, answerer=answerer, name=words["evaluator"])
            try:
                scoring.run(total, stopped=lambda: False, after=_counting(total))
                return _told(scoring, words, options)
            finally:
                scoring.close()
        except (SandboxRefused, SecretRefused, Unscorable, RowProblem) as error:
            raise UsageError(str(error)) from error


def _runner() -> SandboxRunner:
    """A sandbox whose evaluators may ask the judge of this environment; its key stays here."""
    try:
        return new_runner(judge=judge_of(os.environ))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _scoring(
    named: Named, rows: Rows, options: argparse.Namespace, *, answerer: Callable[[], Answerer] | None, name: str
) -> Scoring:
    """The evaluation in a folder of its own; what an earlier one has left in a folder that was named is removed."""
    folder = _folder(options.out, name)
    for left in (SCORES, ANSWERS):
        (folder / left).unlink(missing_ok=True)
    inner = named.evaluator.inner if isinstance(named.evaluator, Weighted) else named.evaluator
    weights = named.evaluator.weights if isinstance(named.evaluator, Weighted) else None
    return Scoring(folder, rows, inner, answerer=answerer, weights=weights, redact=named.redact, version=named.revision)


def _told(scoring: Scoring, words: dict[str, str], options: argparse.Namespace) -> int:
    """Write what came of it, print it, and say by the exit status whether enough rows have a score."""
    folder, results = scoring.folder, scoring.results
    scoring.write(folder / RESULTS)
    summary = summarise(results, seed=options.seed)
    refusal = _refusal(results, options.max_invalid_fraction)
    wanted = set(worst(results, max(options.worst, WORST)))
    rows = {index: row for index, row in scoring.answered_rows() if index in wanted}
    write_page(Page(words=words, rows=rows, results=results, summary=summary, refusal=refusal), folder)
    for line in _lines(rows, results, summary, worst_rows=options.worst):
        print(line)
    print(f"results  {folder / RESULTS}\nreport   {folder / PAGE}")
    if refusal:
        print(refusal)
        return _TOO_MANY
    return 0


def _counting(total: int) -> Callable[[Found], None]:
    """Tells how far the scoring is, where it takes long."""
    done, last = 0, time.monotonic()

    def after(found: Found) -> None:
        nonlocal done, last
        done += len(found)
        if time.monotonic() - last > _TOLD_SECONDS:
            last = time.monotonic()
            print(f"scored {done:,} of {total:,} rows", flush=True)

    return after


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
        elif key in words:
            raise UsageError(f"{key}= is given twice: {words[key]} and {value}")
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


def _rows(words: dict[str, str], options: argparse.Namespace) -> tuple[Rows, int, int]:
    """The rows, how many there are, and how many of them a model has to answer."""
    if options.again and "model" not in words:
        raise UsageError("--again needs model=, which answers anew")
    path = _data(words, options.gateway)
    change = (lambda row: _asked_again(_asked(row))) if options.again else _asked
    rows = Rows([path], arrays=True, change=change, most=options.limit, shown=str)
    total = lacking = first = 0
    for index, row in rows:
        total += 1
        if not has_answer(row):
            first, lacking = first if lacking else index + 1, lacking + 1
    if not total:
        raise UsageError(f"{path} has no rows")
    if lacking and "model" not in words:
        raise UsageError(
            f"{lacking} of {total} rows have no answer (row {first} is the first); name a model with "
            "model=, or end each row's messages with the assistant's"
        )
    if "model" in words and not lacking:
        print(f"model={words['model']} answers nothing: every row has its answer (--again: answer anew)")
    return rows, total, lacking


def _data(words: dict[str, str], gateway: str) -> Path:
    name = words.get("data")
    if name is None:
        folder = examples().get(words["evaluator"], Path(words["evaluator"]).expanduser())
        if not (folder / ROWS).is_file():
            raise UsageError("data= is missing: a JSONL or JSON file, or a gateway data set")
        return folder / ROWS
    with Teller(gateway_asked(gateway)) as teller:
        try:
            path = Path(Places(teller.client).rows(name, what="data").path)
        except GatewayError as error:
            raise UsageError(f"data={name}: {error.message}") from error
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix in (".jsonl", ".json"))
        if len(found) != 1:
            raise UsageError(f"data={name}: {path} holds {len(found)} JSONL or JSON files; name one")
        return found[0]
    if not path.is_file() or path.suffix not in (".jsonl", ".json", ".ndjson"):
        raise UsageError(f"data={name}: give a .jsonl or .json file, or a gateway data set")
    return path


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


def _check_numbers(options: argparse.Namespace) -> None:
    for name, value, most in (
        ("limit", options.limit, None), ("worst", options.worst, None),
        ("max-invalid-fraction", options.max_invalid_fraction, 1),
    ):  # fmt: skip
        if not 0 <= value <= (value if most is None else most):
            allowed = "0 or more" if most is None else f"a share from 0 to {most}"
            raise UsageError(f"--{name} {value:g}: expected {allowed}")


def _answer_settings(options: argparse.Namespace) -> AnswerSettings:
    try:
        return AnswerSettings(max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _place(words: dict[str, str], options: argparse.Namespace, lacking: int) -> ModelPlace:
    """Where the model lies, found before anything is scored."""
    base, adapter = find_weights(words["model"], options.gateway)
    print(f"{words['model']} answers {lacking:,} rows")
    return ModelPlace(name=words["model"], base=base, adapter=str(adapter) if adapter else None)


def _answerer(place: ModelPlace, settings: AnswerSettings) -> Answerer:
    try:
        return Answerer(place, settings)
    except (OSError, ValueError) as error:
        raise UsageError(f"model={place.name}: {error}") from error


def _refusal(results: Results, limit: float) -> str:
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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    return out.absolute()


def _lines(rows: Mapping[int, Row], results: Results, summary: Summary, *, worst_rows: int) -> list[str]:
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
