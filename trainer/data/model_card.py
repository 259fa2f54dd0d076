"""What a base model declares about itself, read from its configuration alone: context length and end-of-turn ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, GenerationConfig

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Declared:
    """context_length: positions the model has. stop_ids: ids that end an answer; empty where it declares none.
    vocabulary: ids the model has embeddings for."""

    context_length: int
    stop_ids: frozenset[int]
    vocabulary: int


def declared(path: str, revision: str | None) -> Declared:
    """Read the configuration of a model folder or hub id. Raises `ValueError` naming the path and the way out."""
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        words = str(error).strip().splitlines()
        raise ValueError(
            f"model {path!r}: its configuration cannot be read ({words[0] if words else type(error).__name__}); "
            "give a folder that from_pretrained takes, or a hub id while online"
        ) from error
    found = _ids(config.eos_token_id)
    try:
        found |= _ids(GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id)
    except (OSError, ValueError) as error:  # a model need not have a generation_config.json
        if (Path(path) / GENERATION).is_file():
            words = str(error).strip().splitlines()
            raise ValueError(
                f"model {path!r}: its {GENERATION}, which may name more ids that end an answer, cannot be read "
                f"({words[0] if words else type(error).__name__}); mend it, or take it away"
            ) from error
    numbers = {name: getattr(config, name, None) for name in ("max_position_embeddings", "vocab_size")}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"model {path!r}: its config.json ({type(config).__name__}) has {name} {value}, and training needs a "
                "number of 1 or more; give another model"
            )
    positions, vocabulary = (int(value or 0) for value in numbers.values())
    return Declared(positions, frozenset(found), vocabulary)


def _ids(value: object) -> set[int]:
    if value is None:
        return set()
    return {int(one) for one in value} if isinstance(value, Iterable) else {int(value)}  # type: ignore[call-overload]
