"""`report.html`: one page that tells a whole run, made from the files in its folder and from nothing else.

The page is one file that loads nothing and runs no script (its content security policy says so too), so that it can
be sent to anybody and opened anywhere, on a phone too. Rows, names and messages are hostile until escaped: the
template (`report_page.jinja`) escapes every value, and `_visible` shows characters that would hide or turn text round.

    python -m trainer show RUN --report
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from trainer import __version__, provenance, run_files
from trainer.charts import Chart, line_chart, number
from trainer.jobs import JobState
from trainer.report import Event
from trainer.report_lineage import lineage
from trainer.run_files import RunFiles

REPORT = "report.html"
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_TEMPLATE = Path(__file__).with_suffix(".jinja")
_PER_TOKEN, _PER_PAIR = "nats per trained token", "mean over pairs"
_CHARTS = (  # of these a run has those that its kind logs; losses are told in the unit of their kind
    ("Training loss", "loss", ""),
    ("Held-out loss", "eval/loss", ""),
    ("Held-out preference", "eval/preference", "share of pairs, chosen answer likelier"),
    ("Held-out exact match", "eval/exact_match", "share of the scored rows"),
    ("Margin", "margin", "chosen less rejected reward"),
    ("Log odds ratio", "log_odds", _PER_PAIR),
    ("Accuracy", "accuracy", "share of pairs told apart as wanted"),
    ("Chosen reward", "chosen_reward", _PER_PAIR),
    ("Rejected reward", "rejected_reward", _PER_PAIR),
    ("Log-prob of chosen answers", "chosen_logprob", "nats, whole answer"),
    ("Log-prob of rejected answers", "rejected_logprob", "nats, whole answer"),
    ("Distance from the reference", "kl_k3", "k3 on chosen answers, nats per token"),
    ("Learning rate", "learning_rate", "rate"),
    ("Gradient norm", "grad_norm", "norm before clipping"),
    ("Speed", "perf/tokens_per_second", "tokens per second"),
)
_BEST = {  # marked on these curves; of equal ones the first
    "eval/loss": min, "eval/exact_match": max, "eval/preference": max,
}  # fmt: skip
_CHOSEN = (provenance.TYPED, provenance.WIRE, provenance.PRESET, "configs/experiment/")
_FIRST_SAMPLES, _MOST_SAMPLES = 6, 200
_VALUE_CHARS = 2_000
_TREE_ROWS = 200
_MAIN_PACKAGES = (
    "gateway-trainer", "torch", "transformers", "peft", "tokenizers", "safetensors", "datasets", "numpy", "pydantic",
    "hydra-core", "accelerate",
)  # fmt: skip
_HIDDEN = {"Cc", "Cf", "Cs"}  # control, format (direction), surrogate
_JOINERS = "\u200c\u200d"  # of these, parts of words in some scripts, and of emoji
_TONES = {
    JobState.COMPLETED: "good", JobState.EARLY_STOPPED: "good", JobState.FAILED: "bad", JobState.CANCELLED: "warn",
    JobState.EXPIRED: "bad", JobState.PAUSED: "warn",
}  # fmt: skip


def write_report(folder: Path) -> Path:
    """Write `report.html` for the run in `folder`, whatever its state, and return its path.

    Raises `UsageError` when the folder has no readable `run.json`.
    """
    folder = folder.absolute()
    page = render(run_files.read(folder))
    path = folder / REPORT
    temporary = folder / f".{REPORT}.{os.getpid()}"
    temporary.write_bytes(page.encode())
    temporary.replace(path)
    return path


def render(files: RunFiles) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_visible)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    rows = _settings(files)
    return template.render(
        csp=CSP,
        heading=_heading(files),
        numbers=_numbers(files),
        samples=_samples(files),
        charts=_charts(files),
        ledgers=[_ledger(name, ledger) for name, ledger in files.ledgers.items()],
        typed=" ".join(shlex.quote(word) for word in files.spec.overrides),
        settings_all=rows,
        settings_chosen=[row for row in rows if row["chosen"]],
        objective=_tree(files.spec.objective),
        environment=_environment(files),
        lineage=lineage(files),
        checkpoints=_checkpoints(files),
        trees=[(name, _tree(tree)) for name, tree in files.trees.items()],
        texts=list(files.texts.items()),
        problems=files.problems,
        next_steps=_next_steps(files),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        version=__version__,
        folder=str(files.folder),
    )


def _heading(files: RunFiles) -> dict[str, Any]:
    one, spec = files.history, files.spec
    rank, kind = spec.hyper.lora_rank, str(spec.objective.get("method", spec.kind)).lower()
    method = "all parameters" if rank == 0 else f"LoRA rank {rank}" if rank else "LoRA, of the adapter started from"
    return {
        "id": spec.id,
        "state": one.words,
        "tone": "warn" if one.interrupted else _TONES.get(one.state, ""),
        "message": one.message,
        "percent": one.percent,
        "what": f"{kind} of {spec.base_name} ({method}) on {spec.job.dataset}; described {spec.created}",
    }


def _numbers(files: RunFiles) -> list[dict[str, str]]:
    """What matters first; only what is known."""
    found: list[tuple[str, str, str]] = []
    shares = {when: _share(files.samples[when]) for when in ("before", "after") if files.samples.get(when)}
    if shares:
        rows = len(next(iter(files.samples[when] for when in shares)))
        found.append(("Exact match", " → ".join(shares.values()), f"{' → '.join(shares)}, of {rows} held-out rows"))
    held_out, loss, preference = (files.series[name] for name in ("eval/loss", "loss", "eval/preference"))
    if preference:
        ends = " → ".join(f"{preference[step]:.1%}" for step in (min(preference), max(preference)))
        found.append(("Held-out preference", ends, "of the held-out pairs have the chosen answer as the likelier one"))
    if held_out:
        best = min(held_out, key=lambda step: held_out[step])
        first, last = held_out[min(held_out)], held_out[max(held_out)]
        words = f"best {number(held_out[best])} at step {best}"
        found.append(("Held-out loss", f"{number(first)} → {number(last)}", words))
    if loss:
        found.append(("Training loss", f"{number(loss[min(loss)])} → {number(loss[max(loss)])}", "first and last step"))
        found.append(("Steps", f"{max(loss):,}", f"{files.spec.hyper.epochs} epochs asked for"))
    if tokens := sum(files.series["tokens"].values()):
        found.append(("Tokens", f"{tokens:,.0f}", "read by the model, padding not counted"))
    if seconds := _seconds_at_work(files.events):
        in_steps = sum(files.series["perf/seconds"].values())
        found.append(("Time", _duration(seconds), f"{_duration(in_steps)} of it in optimizer steps"))
    return [{"name": name, "value": value, "note": note} for name, value, note in found]


def _samples(files: RunFiles) -> dict[str, Any]:
    """The answers side by side, in the order of the held-out rows."""
    kinds = [when for when in ("before", "after") if files.samples.get(when)]
    rows = max((len(files.samples[when]) for when in kinds), default=0)
    shown = []
    for position in range(min(rows, _MOST_SAMPLES)):
        given = [(when, files.samples[when][position]) for when in kinds if position < len(files.samples[when])]
        last = given[-1][1]
        shown.append(
            {
                "asked": _cut(last.get("asked")),
                "expected": _cut(last.get("expected")),
                "given": [
                    (when, {"text": _cut(one.get("given")), "right": one.get("exact") is True}) for when, one in given
                ],
            }
        )
    which = f"All {rows}" if len(shown) == rows else f"The first {len(shown)} of {rows}"
    words = f"{which} answered rows, in order. Right means equal but for white space at the ends."
    return {"first": shown[:_FIRST_SAMPLES], "rest": shown[_FIRST_SAMPLES:], "words": words}


def _charts(files: RunFiles) -> list[Chart]:
    drawn = []
    loss_unit = _PER_PAIR if files.spec.objective.get("pairs") else _PER_TOKEN
    for title, name, unit in _CHARTS:
        points = [(float(step), value) for step, value in sorted(files.series[name].items())]
        finite = [point for point in points if math.isfinite(point[1])]
        choose = _BEST.get(name)
        best = choose(finite, key=lambda point: point[1]) if choose and finite else None
        chart = line_chart(title, points, unit=unit or loss_unit, best=best)
        drawn += [chart] if chart else []
    return drawn


def _ledger(name: str, ledger: dict[str, Any]) -> dict[str, Any]:
    totals = [
        (group, [(key.replace("_", " "), _count(value)) for key, value in counts.items()])
        for group, counts in _mapping(ledger.get("totals")).items()
        if isinstance(counts, dict)
    ]
    reasons = [f"{_count(count)} × {reason}" for reason, count in _mapping(ledger.get("reasons")).items()]
    problems = [one for found in _mapping(ledger.get("problems")).values() for one in found]
    return {
        "name": name,
        "source": _mapping(ledger.get("source")).get("name", ""),
        "totals": totals,
        "reasons": ", ".join(reasons) or "none: every row was used whole",
        "warnings": ledger.get("warnings") or [],
        "problems": problems,
    }


def _settings(files: RunFiles) -> list[dict[str, Any]]:
    """Every value of the configuration with its origin; those that this run's words or experiment chose are marked."""
    spec = files.spec
    left_out = {"version", "id", "created", "trainer_version", "objective", "overrides", "sources"}
    document = spec.model_dump(mode="json", exclude=left_out)
    if config := document["job"].get("wandb_config"):
        config.pop("api_key", None)
    rows = []
    for key, value in provenance.leaves(document):
        source = spec.sources.get(key, "not recorded" if not spec.sources else provenance.DEFAULT)
        chosen = source.startswith(_CHOSEN)
        rows.append({"key": _breakable(key), "value": _plain(value), "source": source, "chosen": chosen})
    return rows


def _environment(files: RunFiles) -> dict[str, Any] | None:
    if not files.attempts:
        return None
    last = files.attempts[-1]
    packages = _mapping(last.get("packages"))
    rows = _tree({key: value for key, value in last.items() if key != "packages"})
    rows += [(f"package {name}", str(packages[name])) for name in _MAIN_PACKAGES if name in packages]
    differences = [
        f"Attempt {index + 1} of {len(files.attempts)} (started {earlier.get('started')}) ran with other "
        f"{', '.join(different)}."
        for index, earlier in enumerate(files.attempts[:-1])
        if (different := [key for key in last if key != "started" and earlier.get(key) != last[key]])
    ]
    return {"rows": rows, "differences": differences, "packages": [(name, str(one)) for name, one in packages.items()]}


def _checkpoints(files: RunFiles) -> list[dict[str, str]]:
    return [
        {
            "step": f"{one.step:,}",
            "created": one.created,
            "bytes": f"{one.bytes:,}",
            "uses": ", ".join(word for word, so in (("resume", one.resumable), ("promote", one.promotable)) if so),
            "path": one.path.relative_to(files.folder).as_posix(),
        }
        for one in files.checkpoints
    ]


def _next_steps(files: RunFiles) -> list[dict[str, str]]:
    one = files.history
    folder = shlex.quote(str(files.folder))
    steps = []
    if (files.folder / "model").is_dir():
        steps.append(("Talk to the model:", f"python -m trainer chat {folder}"))
    if one.state not in (JobState.COMPLETED, JobState.EARLY_STOPPED):
        steps.append(("Go on from the newest whole checkpoint:", f"python -m trainer resume {folder}"))
    good = [checkpoint for checkpoint in files.checkpoints if checkpoint.promotable]
    if good and files.spec.gateway.kind != "off":
        target = shlex.quote(str(good[-1].path))
        steps.append(("Make a checkpoint a model of the gateway:", f"python -m trainer promote {target} --to my-model"))
    elif good:
        words = f"Start from the adapter of step {good[-1].step} (run with gateway=off, so it cannot be promoted):"
        steps.append(
            (words, f"python -m trainer job.warm_start_from={shlex.quote(str(good[-1].path))} data.train=FILE")
        )
    steps.append(("Write this page again:", f"python -m trainer show {folder} --report"))
    return [{"words": words, "command": command} for words, command in steps]


def _seconds_at_work(events: list[Event]) -> float:
    """From each start of a worker to the last thing it said, summed."""
    seconds = 0.0
    started = last = None
    for event in events:
        now = datetime.fromisoformat(event.time)
        if event.kind == "state" and event.body["state"] == JobState.VALIDATING:
            seconds += (last - started).total_seconds() if started and last else 0.0
            started = now
        last = now
    return seconds + ((last - started).total_seconds() if started and last else 0.0)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _share(answers: list[dict[str, Any]]) -> str:
    return f"{sum(one.get('exact') is True for one in answers) / len(answers):.1%}"


def _tree(tree: Any) -> list[tuple[str, str]]:
    rows = [
        (key or "value", f"{value:,}" if type(value) is int else _plain(value))
        for key, value in provenance.leaves(tree)
    ]
    left = len(rows) - _TREE_ROWS
    return rows if left <= 0 else [*rows[:_TREE_ROWS], ("...", f"{left:,} more values are in the file")]


def _plain(value: Any) -> str:
    """A value of a configuration as text."""
    if value is None:
        return "none"
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]} [... {len(text):,} characters]"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _visible(value: Any) -> Any:
    """Text with its control and direction-changing characters spelled out; markup made here passes."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(one if one in "\n\t" or unicodedata.category(one) not in _HIDDEN else _spelled(one) for one in value)


def _breakable(key: str) -> Markup:
    """A dotted key that may be broken after its dots and underscores, on a narrow page."""
    return Markup("<wbr>").join(_visible(part) for part in re.split(r"(?<=[._])", key))


def _spelled(character: str) -> str:
    return character if character in _JOINERS else f"\\u{ord(character):04x}"
