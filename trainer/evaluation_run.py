"""What an evaluation job runs as: `evaluation.json`, the worker's only input, and the evaluator that it describes.

The gateway and the worker open an evaluator by the same function, so that a preview scores as a job does. Secrets are
named here and never stored: their values come through a broker, and only those that the operator granted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from evaluators.archive import read_archive
from evaluators.custom import criteria, project
from evaluators.custom.criteria import CriteriaEvaluator
from evaluators.custom.project import REQUIREMENTS, Mode, ProjectEvaluator
from evaluators.custom.running import ProgramEvaluator, requires_real
from evaluators.kinds.base import Evaluator, Runner
from evaluators.protocol import MAX_INVALID_FRACTION, Limits, Program
from evaluators.rows import Row
from trainer.disk import write_whole
from trainer.runs import Closed

EVALUATION_FILE = "evaluation.json"
GRANTS_VARIABLE = "TRAINER_EVALUATOR_SECRETS"  # the operator's list of the secrets that evaluators may be given
GRANTED_PREFIX = "TRAINER_GRANTED_"  # of the variables in which a worker gets what an evaluator was granted
JUDGE_KEY_VARIABLE = "TRAINER_JUDGE_KEY"  # in which a job's worker gets that key; no evaluator does
# Added by an earlier evaluation: no evaluator sees them, and a row that is scored anew does not keep them.
SCORED_FIELDS = (
    "evals", "eval_details", "evaluation_result", "eval_status", "eval_message", "eval_seconds", "eval_tier",
    "eval_version",
)  # fmt: skip
# The real package is imported for seconds by each process, and starts threads of its own.
_REAL = replace(Limits.bundle(), wall_seconds=120.0, cpu_seconds=120.0, processes=64, descriptors=256)
_CHECK_FILE = "evaluator_load_check.py"
_CHECK = b"""\
import importlib, os

def check(row):
    path, name = os.environ["EVALUATOR_LOADS"].split("::")
    found = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise LookupError(path + " has no function " + repr(name))
    return 1.0
"""

AnyEvaluator = CriteriaEvaluator | ProjectEvaluator | ProgramEvaluator


class EvaluatorSource(Closed):
    """One version of an evaluator, as it can be opened on this machine."""

    name: str = Field(default="", description="Full resource name; empty for a draft.")
    version: str = Field(default="", description="Id of the revision, as v3; empty for a draft.")
    criteria: list[dict[str, Any]] = Field(default_factory=list, description="Code snippets, instead of an archive.")
    archive: str | None = Field(default=None, description="The uploaded archive.")
    entry_point: str = Field(default="", description="path::function; empty = the project's only one.")
    requirements: str = Field(default="", description="Of the evaluator's record; empty = requirements.txt.")
    python: str | None = Field(default=None, description="Of the environment that was built; None = a bare one.")
    granted: list[str] = Field(default_factory=list, description="Names of the secrets in its environment.")

    @property
    def revision(self) -> str:
        """Full name of the revision; "" of a draft."""
        return f"{self.name}/versions/{self.version}" if self.name and self.version else ""


class ModelPlace(Closed):
    """The model that answers rows without an answer."""

    name: str = Field(description="Full resource name.")
    base: str = Field(description="Folder or hub id of the base model.")
    adapter: str | None = Field(default=None, description="Folder of the adapter; None = the base model itself.")


class AnswerSettings(Closed):
    """How the model answers."""

    max_tokens: int = Field(default=256, ge=1, description="Of one answer.")
    temperature: float = Field(default=0.0, ge=0, description="0 = greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus; 1 = off.")
    top_k: int = Field(default=0, ge=0, description="0 = off.")
    seed: int = Field(default=0, ge=0, description="Of the sampling.")


class EvaluationRun(Closed):
    """All that the worker of an evaluation job needs to know."""

    kind: ClassVar[str] = "evaluation"
    version: int = 1
    id: str = Field(description="The job's id.")
    created: str
    trainer_version: str
    evaluator: EvaluatorSource
    rows: list[str] = Field(description="Files of the input data set, in their order.")
    input_dataset: str
    output_dataset: str
    model: ModelPlace | None = None
    answers: AnswerSettings = AnswerSettings()
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="Of metrics, whose weighted sum is the score; empty = the evaluator's own."
    )
    max_invalid_fraction: float = Field(default=MAX_INVALID_FRACTION, ge=0, le=1, description="Above it: a pause.")
    chunk_rows: int = Field(default=200, ge=1, description="Rows scored, and saved, together, at most.")

    @property
    def objective(self) -> dict[str, Any]:
        """What the job's log begins with: all that decides a score."""
        kept = {"input_dataset", "output_dataset", "answers", "max_invalid_fraction", "reward_weights"}
        shown = self.model_dump(mode="json", include=kept)
        model = self.model.name if self.model else None
        return {"evaluator": self.evaluator.name, "version": self.evaluator.version, "model": model, **shown}

    def save(self, folder: Path) -> Path:
        """Write `evaluation.json` into `folder` (made if absent) and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / EVALUATION_FILE
        write_whole(path, self.model_dump_json(indent=2).encode() + b"\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> EvaluationRun:
        """Read `evaluation.json` of `folder`. Raises `FileNotFoundError` or `pydantic.ValidationError`."""
        return cls.model_validate_json((folder / EVALUATION_FILE).read_bytes())


def mode_of(evaluator: Evaluator) -> Mode:
    """pointwise: each row for itself; groupwise: those of one question together; all: all together."""
    return evaluator.mode if isinstance(evaluator, ProjectEvaluator) else "pointwise"


def files_of(source: EvaluatorSource) -> dict[str, bytes]:
    """The uploaded project's files, with the requirements that count. Raises `ArchiveRefused`, a `ValueError`."""
    if source.archive is None:
        return {REQUIREMENTS: source.requirements.encode()} if source.requirements else {}
    found = _rooted(read_archive(Path(source.archive)), source.entry_point)
    return {**found, REQUIREMENTS: source.requirements.encode()} if source.requirements.strip() else found


def _rooted(files: Mapping[str, bytes], entry: str) -> dict[str, bytes]:
    """The files as seen from the project's folder, where the archive has that folder around them, as clients do."""
    tops = {path.partition("/")[0] for path in files}
    if len(tops) != 1 or any("/" not in path for path in files):
        return dict(files)
    target = entry.partition("::")[0].removeprefix("./")
    if target in files or f"{target}.py" in files or target.replace(".", "/") + ".py" in files:
        return dict(files)  # the entry says that the folder is part of the project
    return {path.partition("/")[2]: content for path, content in files.items()}


def requirements_of(files: Mapping[str, bytes]) -> str:
    """The text of requirements.txt; "" where there is none. Raises `ValueError` for one that is no text."""
    try:
        return files.get(REQUIREMENTS, b"").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{REQUIREMENTS} is not UTF-8 text") from None


def open_evaluator(
    source: EvaluatorSource, files: Mapping[str, bytes], runner: Runner, *, environment: Mapping[str, str] | None = None
) -> AnyEvaluator:
    """The evaluator of a source, with `files` as `files_of` gives them.

    environment: granted variables. Raises `ValueError` naming what is wrong with it, also where it does not load.
    """
    requirements, given = requirements_of(files), dict(environment or {})
    if source.criteria:
        made = criteria.evaluator(source.criteria, runner, requirements=requirements, python=source.python)
        return CriteriaEvaluator({name: _granted(one, given) for name, one in made.criteria.items()})
    limits = _REAL if requires_real(requirements) else Limits.bundle()
    entry = source.entry_point or _only_entry(files)
    return project.evaluator(files, entry, runner, python=source.python, limits=limits, environment=given)


def check_loads(evaluator: AnyEvaluator) -> None:
    """Import it in the sandbox, row by row of its programs. Raises `ValueError` saying what is wrong."""
    if isinstance(evaluator, ProjectEvaluator):
        return  # its mode was asked of it, and so it has been imported
    parts = evaluator.criteria if isinstance(evaluator, CriteriaEvaluator) else {"": evaluator}
    for name, part in parts.items():
        [found] = _load_check(part).evaluate([{}])
        if not found.ok:
            which = f"criterion {name!r}: " if name else ""
            raise ValueError(f"{which}the evaluator cannot be loaded: {found.status.value}: {found.message}")


def unscored(row: Row) -> dict[str, Any]:
    """The row without what an earlier evaluation added to it."""
    return {name: value for name, value in row.items() if name not in SCORED_FIELDS}


def _load_check(part: ProgramEvaluator) -> ProgramEvaluator:
    program = part.program
    environment = {**program.environment, "EVALUATOR_LOADS": program.entry}
    checked = Program(
        {**program.files, _CHECK_FILE: _CHECK}, f"{_CHECK_FILE}::check", program.python, environment, program.readable
    )
    return replace(part, program=checked)


def _granted(one: ProgramEvaluator, environment: Mapping[str, str]) -> ProgramEvaluator:
    return replace(one, program=replace(one.program, environment={**one.program.environment, **environment}))


def _only_entry(files: Mapping[str, bytes]) -> str:
    found = project.entries(files)
    if len(found) == 1:
        return found[0]
    offered = f"it offers {', '.join(found[:10])}" if found else "it has no function under @evaluation_test"
    raise ValueError(f"entryPoint is missing: name path::function; {offered}")


def granted_names(text: str) -> list[str]:
    """The names in a list such as "A, B". Raises `ValueError` for what is no name."""
    names = [part for part in re.split(r"[,\s]+", text) if part]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", name):
            raise ValueError(f"{name[:60]!r} is no name of a secret; expected letters, digits and _")
    return names
