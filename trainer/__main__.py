"""`python -m trainer`: the command line. Composes a job and starts it, or runs one of the commands in `COMMANDS`.

This module imports argparse and nothing heavier, so `--help` answers at once; each command's module is imported when
it is called, and none of them imports torch, but for `chat` and `evaluate model=`, which let a model answer, and
`data`, which reads rows with the model's tokenizer; they do so once what was typed has been checked.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from trainer.errors import UsageError
from trainer.output import steady

DESCRIPTION = """\
Fine-tune a model: compose a job, train it, promote it.

  python -m trainer                                   the quick start: a tiny model learns to sort
  python -m trainer data.train=rows.jsonl model=qwen3_0_6b job.epochs=2
  python -m trainer job=sft model=tiny data=quickstart --dry-run
  python -m trainer data=quickstart --multirun job.learning_rate=1e-3,3e-3

Words of the form key=value choose and override configuration (groups: job, model, data, engine, launch, gateway,
experiment; files in configs/). Everything else is a command:
"""


@dataclass(frozen=True)
class Command:
    """A command: where it lives and what it is for."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "train": Command("trainer.commands.train", "compose and run a job (the default)"),
    "resume": Command("trainer.commands.resume", "go on with a paused, failed or interrupted run"),
    "runs": Command("trainer.commands.runs", "list the runs"),
    "data": Command("trainer.commands.data", "look at rows as the model will see them: data inspect FILE"),
    "explain": Command("trainer.commands.explain", "say what a job or a method trains, and how others' differ"),
    "show": Command("trainer.commands.show", "show one run: job, ledger, metrics, checkpoints, answers"),
    "promote": Command("trainer.commands.promote", "make a run's or a checkpoint's weights a model of the gateway"),
    "chat": Command("trainer.commands.chat", "talk to a model, or answer one prompt"),
    "evaluate": Command("trainer.commands.evaluate", "score answers with an evaluator, in a sandbox"),
    "sync": Command("trainer.commands.sync", "tell the gateway what it has not heard yet"),
    "gateway": Command("trainer.commands.gateway", "serve the embedded gateway with its scheduler"),
    "doctor": Command("trainer.commands.doctor", "say what fence this machine gives to untrusted evaluators"),
}


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are told as all others are: in one line, and without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`. Words that need not be there are not asked for (argparse names them, if intermixed)."""
        needed, found, names = message.partition("required: ")
        if found:
            idle = {str(one.metavar or one.dest) for one in self._actions if one.nargs in ("*", "?")}
            message = needed + found + ", ".join(name for name in names.split(", ") if name not in idle)
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        options = [option for one in self._actions for option in one.option_strings]
        close = difflib.get_close_matches(unknown, options, n=1) if unknown.startswith("-") else []
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"{message}{hint} ({self.prog} --help says what there is)")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 2 refused as typed, else the command's own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):
        print(overview(), end="")
        return 0
    name = words.pop(0) if words and words[0] in COMMANDS else "train"
    module = import_module(COMMANDS[name].module)
    parser = OneLineParser(prog=f"python -m trainer {name}", description=module.__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_intermixed_args(words))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def overview() -> str:
    """What `--help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return DESCRIPTION + "\n".join(lines) + "\n\npython -m trainer COMMAND --help says more about each.\n"


if __name__ == "__main__":
    steady()
    sys.exit(main())
