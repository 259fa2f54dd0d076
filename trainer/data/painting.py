"""Rows as lines of text in which one sees what the model sees: the tokens, and which of them are learnt.

The one decision: every character of a row is either printable or escaped (a row may hold terminal control codes), and
what colour says is also said by marks where there is no colour, so that the output can be searched and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from trainer.data.problem import RowProblem
from trainer.data.render import Rendered, Renderer
from trainer.data.rows import Row

READ, LEARNT, STOP, CUT = "read", "learnt", "stop", "cut"
_STYLES = {READ: "", LEARNT: "\x1b[32m", STOP: "\x1b[1;35m", CUT: "\x1b[31;9m"}  # plain, green, magenta, red
_MARKS = {READ: ("", ""), LEARNT: ("[", "]"), STOP: ("[stop:", "]"), CUT: ("{cut:", "}")}
_DIM, _BAD, _OFF = "\x1b[2m", "\x1b[31m", "\x1b[0m"
_BETWEEN = "\u00b7"  # a dot between two tokens
_INDENT = "    "


class Painter:
    """Paints rows that `renderer` has rendered, with ANSI colours (`colour`) or with marks."""

    def __init__(self, renderer: Renderer, *, colour: bool) -> None:
        self.renderer, self.colour = renderer, colour

    def legend(self) -> str:
        """What the colours or marks mean, and which tokens stop an answer."""
        examples = {READ: "only read", LEARNT: "learnt", STOP: "learnt, and stops the answer", CUT: "cut off"}
        stops = ", ".join(f"{self._name(token)} (id {token})" for token in sorted(self.renderer.stop_ids))
        kinds = "  ".join(self._painted(kind, text) for kind, text in examples.items())
        return f"tokens ({_BETWEEN} stands between two): {kinds}\nstop tokens of the model: {stops or 'none'}"

    def row(self, row: Row, rendered: Rendered, *, kept: int, verdict: str = "", name: str = "") -> str:
        """A row with its counts; tokens from `kept` on are cut off. `verdict` says why it is not used as it is, `name`
        which side of a pair it is."""
        whole, used = rendered, rendered.cut(kept)
        stops = sum(turn.stop_trained for turn in used.turns)
        counts = f"{len(whole.ids)} tokens, {int(used.mask.sum())} learnt" + (
            f", {len(whole.ids) - kept} cut off" if kept < len(whole.ids) else ""
        )
        turns = f"{stops} of {len(used.turns)} learnt turns {'ends' if stops == 1 else 'end'} with a stop token"
        head = f"{row.file}:{row.line}  {name or row.kind}  {counts}; {turns}"
        lines = [head, *([self._bad(verdict)] if verdict else []), _INDENT + "".join(self._runs(whole, kept))]
        return "\n".join(lines)

    def problem(self, problem: RowProblem) -> str:
        """A row that cannot be read or rendered."""
        return self._bad(str(problem))

    def _runs(self, row: Rendered, kept: int) -> Iterator[str]:
        kinds = [self._kind(row, place, kept) for place in range(len(row.ids))]
        between = f"{_DIM}{_BETWEEN}{_OFF}" if self.colour else _BETWEEN
        for number, (kind, places) in enumerate(groupby(range(len(kinds)), key=kinds.__getitem__)):
            within = between + _STYLES[kind] if self.colour else between
            text = within.join(self._token(int(row.ids[place])) for place in places)
            yield (between if number else "") + self._painted(kind, text)

    def _kind(self, row: Rendered, place: int, kept: int) -> str:
        if place >= kept:
            return CUT
        if not row.mask[place]:
            return READ
        return STOP if int(row.ids[place]) in self.renderer.stop_ids else LEARNT

    def _painted(self, kind: str, text: str) -> str:
        if self.colour:
            return f"{_STYLES[kind]}{text}{_OFF}" if _STYLES[kind] else text
        before, after = _MARKS[kind]
        return f"{before}{text}{after}"

    def _bad(self, text: str) -> str:
        words = "".join(map(_printable, text)).replace("\\n", " ")
        return f"{_BAD}{words}{_OFF}" if self.colour else words

    def _token(self, token: int) -> str:
        """A token's text; its name in the vocabulary where it is no whole character or a special token."""
        if token in self.renderer.stop_ids:
            return self._name(token)
        name = self._name(token)
        text = str(self.renderer.tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if not text or "\ufffd" in text:
            return name
        if name.startswith("\u2581") and not text.startswith(" "):  # SentencePiece's space, lost at a text's beginning
            text = f" {text}"
        return "".join(map(_printable, text)).replace("\\n", f"\\n\n{_INDENT}")

    def _name(self, token: int) -> str:
        found = self.renderer.tokenizer.convert_ids_to_tokens(token)
        return "".join(map(_printable, found)) if isinstance(found, str) else f"<{token}>"


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
