"""Log-probs of the frozen reference, computed once and kept on disk: what a preference loss measures itself against.

The reference is the policy as training starts from it. It is asked before the first step of every attempt, so a full
model needs no frozen copy, and an adapter only has to be off. What it says is written piece by piece into
`reference/<key>/` of the run, each piece whole or not at all; a resumed run computes what is missing and nothing else,
in the same pieces, so its numbers are the same bit by bit. The key is made from all that the numbers depend on
(tokenizer, template, base weights, adapter started from, dtype), and each entry has the digest of its tokens: what was
computed for other rows or by another model is never found. A piece that is damaged is computed again.
T positions of a datum, N trained positions of a piece, D datums of a piece.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from trainer.data.datum import Datum
from trainer.data.render import Renderer
from trainer.disk import write_whole
from trainer.environment import model_files
from trainer.runs import RunSpec

FOLDER = "reference"
MADE_WITH = "made_with.json"


def made_with(spec: RunSpec, renderer: Renderer) -> dict[str, str]:
    """Digests of all that the reference's log-probs of a row depend on, but for the row."""
    tokenizer: Any = renderer.tokenizer
    ids = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    template = str(renderer.template or tokenizer.chat_template or "")
    start = model_files(spec.inputs.warm_start, None) if spec.inputs.warm_start else {}
    return {
        "tokenizer": _digest(ids),
        "template": _digest(template),
        "base": _digest(json.dumps(_weights(model_files(spec.inputs.base_model, spec.model.revision)))),
        "adapter": _digest(json.dumps(_weights(start))),
        "dtype": spec.engine.dtype,
    }


def _weights(model: Mapping[str, Any]) -> list[Any]:
    """What of a model's files says which model it is; for one that has no files here, its name."""
    return [[one["file"], one["sha256"]] for one in model.get("files", [])] or [model.get("path"), model.get("commit")]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ReferenceCache:
    """The log-probs that are known of the model and the rendering that `key` describes, below `root`."""

    def __init__(self, root: Path, key: Mapping[str, str], *, damaged: Callable[[str], None]) -> None:
        self.folder = root / _digest(json.dumps(dict(key), sort_keys=True))[:16]
        self._known: dict[bytes, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                self._known.update(_read(path))
            except (SafetensorError, KeyError, ValueError) as error:
                damaged(f"{path} is damaged ({error}); it is computed again")
        write_whole_once(self.folder / MADE_WITH, json.dumps(dict(key), indent=1).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, data: Sequence[Datum], size: int) -> Iterator[tuple[int, list[Datum]]]:
        """(number, datums) of the pieces of `size` neighbours in `data` of which something is not known yet."""
        for number, at in enumerate(range(0, len(data), size)):
            piece = [datum for datum in data[at : at + size] if identity(datum) not in self._known]
            if piece:
                yield number, piece

    def add(self, name: str, data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> None:
        """Keep `logprobs` (float32 [T] each) of `data` as the piece `name`."""
        trained = [row_T[datum.weights != 0].astype(np.float32) for datum, row_T in zip(data, logprobs, strict=True)]
        tensors = {
            "identity": np.frombuffer(b"".join(map(identity, data)), np.uint8).reshape(len(data), -1),
            "lengths": np.array([len(one) for one in trained], np.int64),
            "logprobs": np.concatenate(trained),
        }
        digest = hashlib.sha256(b"".join(tensors[key].tobytes() for key in sorted(tensors))).hexdigest()
        write_whole(self.folder / f"{name}.safetensors", save(tensors, metadata={"sha256": digest}))
        self._known.update(zip(map(identity, data), trained, strict=True))

    def filled(self, datum: Datum) -> Datum:
        """`datum` with the reference's log-probs at its trained positions, 0 elsewhere. Raises `KeyError`."""
        reference_T = np.zeros(datum.length, np.float32)
        reference_T[datum.weights != 0] = self._known[identity(datum)]
        return replace(datum, reference=reference_T)


def identity(datum: Datum) -> bytes:
    """The digest (32 bytes) of a datum's tokens and of which of them are trained."""
    head = struct.pack("<q", datum.length)
    trained = np.packbits(datum.weights != 0).tobytes()
    return hashlib.sha256(head + datum.tokens.tobytes() + datum.targets.tobytes() + trained).digest()


def write_whole_once(path: Path, content: bytes) -> None:
    """`path` with `content`, its folder made; left alone where it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def _read(path: Path) -> dict[bytes, np.ndarray]:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    tensors = load(content)
    said = json.loads(content[8 : 8 + size])["__metadata__"]["sha256"]
    if hashlib.sha256(b"".join(tensors[key].tobytes() for key in sorted(tensors))).hexdigest() != said:
        raise ValueError("its digest is another")
    parts = np.split(tensors["logprobs"], np.cumsum(tensors["lengths"])[:-1])
    return dict(zip((row.tobytes() for row in tensors["identity"]), parts, strict=True))
