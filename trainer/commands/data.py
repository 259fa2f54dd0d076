"""Look at rows as the model will see them: tokens, which of them are learnt, the ledger and the gates.

    python -m trainer data inspect rows.jsonl
    python -m trainer data inspect rows.jsonl --rows 3 --from 100 --model qwen3_0_6b data.overlong=cut

Words of the form key=value override the configuration as they do for a run. Starts and writes nothing. Exit status: 0
the rows would be let through, 2 they would be refused (or what was typed cannot be done).
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.commands.places import Places
from trainer.commands.telling import Teller
from trainer.compose import Composed, compose
from trainer.errors import UsageError
from trainer.jobs import DpoJob
from trainer.runs import RunSpec, shipped

_REFUSED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, the rows, and how they are to be read."""
    parser.add_argument("action", choices=["inspect"], help="inspect: print rows as tokens with what is learnt")
    parser.add_argument("path", help="a file, folder, hub id or gateway data set")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration to choose or override")
    parser.add_argument("--rows", type=_natural, default=5, metavar="N", help="rows shown (default: %(default)s)")
    parser.add_argument("--from", type=_natural, default=1, metavar="K", dest="first",
                        help="the first row shown, counted from 1 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--model", help="a model of configs/model, a folder or a hub id (default: tiny)")
    parser.add_argument("--template", type=Path, metavar="FILE", help="chat template in place of the model's own")
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto",
                        help="colours, or marks such as [learnt] (default: colours on a terminal)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print the rows, the ledger's totals and the gates."""
    spec = _spec(options)
    try:
        return _inspect(spec, first=options.first, rows=options.rows, colour=_colour(options.color))
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def _spec(options: argparse.Namespace) -> RunSpec:
    """The run that would train on these rows; its model and rows are found, nothing is read yet."""
    quoted = str(options.path).replace("\\", "\\\\").replace("'", "\\'")
    words = [*_model(options.model), f"data.train='{quoted}'", *options.overrides]
    composed = compose(words)
    if composed.kind == "sft" and not any(word.startswith("job=") for word in options.overrides):
        composed = compose(["job=dpo", *words]) if _holds_pairs(composed) else composed
    if options.template is not None:
        try:
            template = options.template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--template {options.template}: cannot be read as UTF-8 text: {error}") from error
        job, own = composed.job, {"jinja_template": template}
        update = {"training_config": job.settings.model_copy(update=own)} if isinstance(job, DpoJob) else own
        composed = composed.model_copy(update={"job": job.model_copy(update=update)})
    with Teller(composed.gateway) as teller:
        return composed.spec("inspect", Places(teller.client).inputs(composed), created="")


def _holds_pairs(composed: Composed) -> bool:
    """Whether the first row is a preference pair; what cannot be read is told when it is read again."""
    from trainer.data.rows import Row, read_rows  # noqa: PLC0415

    with Teller(composed.gateway) as teller:
        source = Places(teller.client).rows(composed.job.dataset, what="job.dataset")
    if composed.data.format not in ("auto", "pair"):
        return False
    try:
        return isinstance(next(read_rows(source, composed.data, pairs=True), None), Row)
    except (ValueError, FileNotFoundError):
        return False


def _model(name: str | None) -> list[str]:
    """The words that choose a model: one of the group, or any folder or hub id."""
    if name is None:
        return []
    if (shipped("configs/model") / f"{name}.yaml").is_file():
        return [f"model={name}"]
    if Path(name).expanduser().is_dir() or "/" in name:
        return ["model=path", f"model.path={name}"]
    options = ", ".join(sorted(path.stem for path in shipped("configs/model").glob("*.yaml")))
    raise UsageError(f"--model {name}: no folder, no hub id (owner/name) and none of configs/model ({options})")


def _inspect(spec: RunSpec, *, first: int, rows: int, colour: bool) -> int:
    # The tokenizer's library loads here, after everything that was typed has been checked.
    from trainer.data import gates  # noqa: PLC0415
    from trainer.data.ledger import DataRefused  # noqa: PLC0415
    from trainer.loops.material import open_renderer, read_material  # noqa: PLC0415

    renderer, model = open_renderer(spec)
    longest = min(spec.hyper.max_context, model.context_length)
    _show(spec, renderer, longest=longest, first=first, rows=rows, colour=colour)
    try:
        ledgers = read_material(spec).ledgers.values()
        refusal = ""
    except DataRefused as error:
        ledger, refusal = error.ledger, str(error)
        ledger.gates = ledger.gates or gates.measure(ledger, spec.data.gates)
        ledgers = [ledger]
    for ledger in ledgers:
        print(ledger.source.name)
        for line in ledger.summary():
            print(f"  {line}")
    if refusal:
        print(f"a run would refuse these rows: {refusal}")
        return _REFUSED
    return 0


def _show(spec: RunSpec, renderer: Any, *, longest: int, first: int, rows: int, colour: bool) -> None:
    from trainer.data.painting import Painter  # noqa: PLC0415
    from trainer.data.rows import RowProblem, read_rows  # noqa: PLC0415

    painter = Painter(renderer, colour=colour)
    print(painter.legend(), end="\n\n")
    try:
        found = read_rows(spec.inputs.train, spec.data, pairs=spec.kind == "dpo")
        count = 0
        for count, item in enumerate(islice(found, first - 1, first - 1 + rows), 1):  # noqa: B007  (it is asked below)
            shown = painter.problem(item) if isinstance(item, RowProblem) else _row(item, painter, spec, longest)
            print(shown, end="\n\n")
        if not count:
            print(f"there is no row {first}: the rows end before it\n")
    except RowProblem as problem:
        print(painter.problem(problem), end="\n\n")


def _row(row: Any, painter: Any, spec: RunSpec, longest: int) -> str:
    from trainer.data.ledger import judge, made_of  # noqa: PLC0415
    from trainer.data.render import RenderError  # noqa: PLC0415
    from trainer.data.rows import RowProblem  # noqa: PLC0415

    sides = row.sides or (row,)
    found = painter.renderer.render_batch(sides)
    broken = next((one for one in found if isinstance(one, RenderError)), None)
    if broken is not None:
        return painter.problem(RowProblem(broken.code, str(broken), file=row.file, line=row.line))
    outcome, words, _ = made_of(found, spec.data, max_context=longest)
    verdict = f"{outcome.status}: {words} ({outcome.reason})" if words else ""
    shown = []
    for name, side, rendered in zip(("chosen", "rejected") if row.sides else ("",), sides, found, strict=True):
        alone, _ = judge(rendered, spec.data, max_context=longest)
        kept = alone.kept if outcome.status == "used" else len(rendered.ids)
        shown.append(painter.row(side, rendered, kept=kept, verdict=verdict, name=name))
        verdict = ""  # said once, of both
    return "\n".join(shown)


def _colour(choice: str) -> bool:
    if choice == "auto":
        return sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return choice == "always"


def _natural(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
