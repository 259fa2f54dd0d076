"""What a base model declares about itself, read from its configuration alone: context length and end-of-turn ids."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from transformers import AutoConfig, GenerationConfig


@dataclass(frozen=True)
class Declared:
    """context_length: positions the model has. stop_ids: ids that end an answer; empty where it declares none."""

    context_length: int
    stop_ids: frozenset[int]


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
    with suppress(OSError):  # a model need not have a generation_config.json
        found |= _ids(GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id)
    return Declared(int(config.max_position_embeddings), frozenset(found))


def _ids(value: object) -> set[int]:
    if value is None:
        return set()
    return {int(one) for one in value} if isinstance(value, Iterable) else {int(value)}  # type: ignore[call-overload]
