"""Exact match: 1 where the answer is one of the accepted texts, 0 otherwise."""

from __future__ import annotations

import unicodedata

from pydantic import Field

from evaluators.kinds.base import OfRows, Settings, Tools
from evaluators.protocol import Score
from evaluators.rows import Row, accepted, answer


class ExactMatch(Settings):
    """How texts are made equal before they are compared."""

    field: str = Field("ground_truth", description="field of the row with the accepted text, or a list of them")
    ignore_case: bool = Field(False, description="compare without regard to case")
    ignore_space: bool = Field(True, description="runs of white space are one space, and none at the ends")
    ignore_punctuation: bool = Field(False, description="leave out all punctuation")
    tag: str = Field("", description="compare only what stands in the last <tag>...</tag>; '' = the whole answer")


def build(settings: ExactMatch, _: Tools) -> OfRows:
    """The evaluator."""

    def score(row: Row) -> Score:
        given = answer(row)
        truths = {normal(text, settings) for text in accepted(row, settings.field)}
        if settings.tag:
            found = last_tag(given, settings.tag)
            if found is None:
                return Score(0.0, reason=f"there is no <{settings.tag}>...</{settings.tag}>")
            given = found
        right = normal(given, settings) in truths
        return Score(float(right), reason="equal" if right else "not equal")

    return OfRows(score)


def normal(text: str, settings: ExactMatch) -> str:
    """The text as it is compared."""
    text = unicodedata.normalize("NFC", text)
    if settings.ignore_case:
        text = text.casefold()
    if settings.ignore_punctuation:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
    return " ".join(text.split()) if settings.ignore_space else text


def last_tag(text: str, tag: str) -> str | None:
    """What stands in the last closed <tag>...</tag>, or None."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return None if start < 0 else text[start + len(tag) + 2 : end]
