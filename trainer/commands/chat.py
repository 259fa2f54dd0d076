"""Talk to a model: one of the gateway, a run, a checkpoint, a folder or a hub id.

With a prompt on the command line it answers that and ends; else it reads lines, streams each answer and keeps the
history (/new forgets it, /quit or the end of input leaves).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from trainer.commands.places import Places, weights_folder
from trainer.commands.telling import Teller, add_gateway, gateway_asked
from trainer.errors import UsageError
from trainer.gateway.client import GatewayError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, a prompt, and how to sample."""
    parser.add_argument("model", nargs="?", default="tiny", help="model, run, checkpoint, folder or hub id (tiny)")
    parser.add_argument("prompt", nargs="?", help="answer this one prompt and end")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 = greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus; 1 = off (default)")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    add_gateway(parser)


def run(options: argparse.Namespace) -> int:
    """Answer one prompt, or talk until the input ends."""
    _check_numbers(options)
    base, adapter = find_weights(options.model, options.gateway)
    try:
        talker = _talker(base, adapter, options)
    except (OSError, ValueError) as error:
        raise UsageError(f"model: {options.model!r} cannot be opened: {error}") from error
    messages = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is not None:
        try:
            talker.answer([*messages, {"role": "user", "content": options.prompt}])
        except ValueError as error:
            raise UsageError(f"the prompt cannot be answered: {error}") from error
        return 0
    start = list(messages)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{options.model}: type a line; /new forgets, /quit leaves")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if line == "/quit":
            return 0
        if line == "/new":
            messages = list(start)
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                messages = [*asked, {"role": "assistant", "content": talker.answer(asked)}]
            except ValueError as error:  # the boundary: a line that has no answer is told, and the talk goes on
                print(f"that cannot be answered: {error}")


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise `UsageError` for a setting of the sampling that is out of range."""
    for name, value, fits, allowed in (
        ("temperature", options.temperature, 0 <= options.temperature < math.inf, "0 or more"),
        ("top-p", options.top_p, 0 < options.top_p <= 1, "above 0 and at most 1"),
        ("max-tokens", options.max_tokens, options.max_tokens >= 1, "1 or more"),
        ("seed", options.seed, options.seed >= 0, "0 or more"),
    ):
        if not fits:
            raise UsageError(f"--{name} {value}: expected {allowed}")


def find_weights(name: str, gateway: str) -> tuple[str, Path | None]:
    """(base model, adapter or None) that `name` stands for."""
    with Teller(gateway_asked(gateway)) as teller:
        places = Places(teller.client)
        asked = f"accounts/{teller.settings.account}/models/" if gateway != "off" else ""
        folder = _folder(name, places, asked=asked)
        if folder is None:
            return name, None  # a hub id
        if (folder / "adapter_config.json").is_file():
            return places.base_of(folder), folder
        return str(folder), None


def _folder(name: str, places: Places, *, asked: str) -> Path | None:
    """The folder of model files, None for a hub id; `asked`: the collection in which a gateway may know the name."""
    path = Path(name).expanduser()
    if not path.exists() and (asked or name.startswith("accounts/")):
        full = name if name.startswith("accounts/") else f"{asked}{name}"
        try:
            return Path(places.model(full, what="model"))
        except UsageError as error:
            missing = isinstance(error.__cause__, GatewayError) and error.__cause__.code == "NOT_FOUND"
            if name.startswith("accounts/") or not missing:
                raise
    if not path.exists() and name.count("/") == 1 and not path.parent.exists():
        return None
    try:
        return weights_folder(name, what="model")
    except UsageError as error:
        also = "the gateway has no such model" if asked else "with --gateway off no gateway is asked"
        raise UsageError(f"{error}; and {also}") from error


class _Talker:
    """An engine, a renderer and how to sample."""

    def __init__(self, engine: Any, renderer: Any, params: Any) -> None:
        self.engine, self.renderer, self.params = engine, renderer, params

    def answer(self, messages: list[dict[str, str]]) -> str:
        """Stream the answer to standard output and return it."""
        prompt = self.renderer.chat_ids(messages)
        ids: list[int] = []
        shown = ""
        for part in self.engine.stream("chat", prompt, self.params):
            ids += part.tokens.tolist()
            text = self.renderer.tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # the middle of a character; wait for its other bytes
                sys.stdout.write(text[len(shown) :])
                sys.stdout.flush()
                shown = text
        print()
        return shown


def _talker(base: str, adapter: Path | None, options: argparse.Namespace) -> _Talker:
    # The tensor libraries load here, after everything that was typed has been checked.
    from trainer.data.render import Renderer, load_tokenizer  # noqa: PLC0415
    from trainer.engine.base import SamplingParams  # noqa: PLC0415
    from trainer.engine.local import LocalEngine  # noqa: PLC0415

    tokens_of = str(adapter) if adapter and (adapter / "tokenizer.json").is_file() else base
    engine = LocalEngine(base)
    engine.create_model("chat", lora=None, base_only=adapter is None, warm_start=adapter)
    renderer = Renderer(load_tokenizer(tokens_of, None), stop_ids=engine.stop_ids)
    params = SamplingParams(
        max_new_tokens=options.max_tokens, temperature=options.temperature, top_p=options.top_p, seed=options.seed
    )
    return _Talker(engine, renderer, params)
