"""What `evaluator=` may name: an example, a built-in kind, a folder, a file's function, or an evaluator of the gateway.

An evaluator of the gateway is opened as a job of it is, at one revision: `NAME`, the newest, or `NAME/versions/` and
the id of a revision or an alias, where NAME is an id or a full name (`accounts/A/evaluators/E`). It gets the variables
that TRAINER_EVALUATOR_SECRETS names, as far as they are set here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.broker import Broker
from evaluators.build import BuildState
from evaluators.custom import project
from evaluators.custom.running import requires_real
from evaluators.kinds.base import Evaluator, Tools
from evaluators.kinds.llm_judge import JudgeTools
from evaluators.kinds.table import KINDS, make
from evaluators.library import CUSTOM, DESCRIPTION, describe, examples, files_of, open_folder
from evaluators.sandboxed import SandboxRunner
from trainer import evaluation_run
from trainer.commands.telling import Teller, gateway_asked
from trainer.errors import UsageError
from trainer.evaluation_run import (
    GRANTS_VARIABLE,
    EvaluatorSource,
    check_loads,
    granted_names,
    open_evaluator,
    requirements_of,
)
from trainer.evaluation_sandbox import new_builder
from trainer.gateway.client import GatewayClient, GatewayError
from trainer.runs import home

_IN_GATEWAY = re.compile(
    r"(?:accounts/(?P<account>[^/]+)/evaluators/)?(?P<id>[a-z0-9-]+)(?:/versions/(?P<version>[A-Za-z0-9][\w.-]*))?"
)
_VERSION = re.compile(r"[A-Za-z0-9][\w.-]{0,62}")
_NEWEST = "latest"


@dataclass(frozen=True)
class Named:
    """An evaluator that can score.

    revision: its full name in the gateway; "" = it is none of a gateway. redact: strikes out the secrets it was given.
    """

    evaluator: Evaluator
    revision: str = ""
    redact: Callable[[str], str] = str


def open_named(words: Mapping[str, str], settings: dict[str, Any], runner: SandboxRunner, *, gateway: str) -> Named:
    """The evaluator of the typed `words`. Raises `UsageError`, or `ValueError` naming what is wrong with it."""
    name = words["evaluator"]
    folder, tools = Path(name).expanduser(), _tools(settings, name, runner)
    if "entry" in words or "::" in name:
        _no_settings(name, settings)
        return Named(_of_files(name, words.get("entry", ""), tools))
    if (folder / DESCRIPTION).is_file():
        return Named(open_folder(folder, tools, changes=settings))
    if name in examples() and (name not in KINDS or "data" not in words):
        return Named(open_folder(examples()[name], tools, changes=settings))
    if folder.suffix == ".py" and folder.is_file():
        raise UsageError(f"evaluator={name}: name the function too, as evaluator={name}::score")
    if name in KINDS:
        return Named(make(name, settings, tools))
    if _IN_GATEWAY.fullmatch(name):
        found = _of_gateway(name, runner, gateway)
        if found is not None:
            _no_settings(name, settings)
            return found
    raise UsageError(
        f"evaluator={name}: no example ({', '.join(examples())}), no built-in kind ({', '.join(KINDS)}), no folder "
        f"with {DESCRIPTION} (kinds: also {', '.join(CUSTOM)}), no project's folder and entry=, no file.py::function, "
        "no evaluator of the gateway (an id, or accounts/A/evaluators/E; /versions/V for one revision or alias)"
    )


def _no_settings(name: str, settings: Mapping[str, Any]) -> None:
    if settings:
        raise UsageError(f"evaluator={name} has no settings; given: {', '.join(settings)}")


def _tools(settings: Mapping[str, Any], name: str, runner: SandboxRunner) -> Tools:
    """The sandbox, and secrets from environment variables: only the one that the judge's settings name."""
    folder = examples().get(name, Path(name).expanduser())
    described = describe(folder) if (folder / DESCRIPTION).is_file() else {}
    named = settings.get("key_env") or described.get("settings", {}).get("key_env") or ""
    broker = Broker(os.environ.get, usable=[named] if named else [])
    return Tools(runner, JudgeTools(broker.spend))


def _of_files(name: str, entry: str, tools: Tools) -> Evaluator:
    """A project's folder with an entry point, or one file."""
    path, _, function = name.partition("::")
    place = Path(path).expanduser()
    if function and place.is_file():
        files, entry = {place.name: place.read_bytes()}, f"{place.name}::{function}"
    elif entry and place.is_dir():
        files = files_of(place)
    else:
        raise UsageError(f"evaluator={name}: there is no {'file' if function else 'folder'} {path!r}")
    made = project.evaluator(files, entry, tools.sandbox("project"), python=_python(requirements_of(files)))
    check_loads(made)
    return made


def _python(requirements: str) -> str | None:
    """The interpreter of the environment that requirements.txt asks for; None = a bare one."""
    builder = new_builder(home() / "cache" / "evaluator_environments")
    build = builder.build(requirements, tell=lambda one: print(f"building an environment; log: {one.log}"))
    if build.state is not BuildState.ACTIVE:
        raise UsageError(f"the environment cannot be built: {build.message}; log: {build.log}")
    if build.python and requires_real(requirements):
        print("requirements.txt names eval-protocol: the package itself is used, not the stand-in")
    return build.python


def _of_gateway(name: str, runner: SandboxRunner, gateway: str) -> Named | None:
    """The evaluator at the revision that `name` says; None where a bare id is no evaluator of the gateway."""
    client = Teller(gateway_asked(gateway)).client()
    explicit = name.startswith("accounts/") or "/versions/" in name
    if client is None:
        if explicit:
            raise UsageError(f"evaluator={name} lives in a gateway, and --gateway off was given")
        return None
    with client:
        try:
            source = _source(client, name)
        except GatewayError as error:
            if error.code == "NOT_FOUND" and not explicit:
                return None
            raise UsageError(f"evaluator={name}: {error.message}") from error
    files = evaluation_run.files_of(source)
    source = source.model_copy(update={"python": _python(requirements_of(files))})
    print(f"evaluator {source.revision}")
    names = granted_names(os.environ.get(GRANTS_VARIABLE, ""))
    broker = Broker(os.environ.get, granted=names)
    environment = broker.environment(one for one in names if one in os.environ)
    return Named(open_evaluator(source, files, runner, environment=environment), source.revision, broker.redact)


def _source(client: GatewayClient, name: str) -> EvaluatorSource:
    """The revision that `name` says, with its source on this machine. Raises `GatewayError`."""
    match = _IN_GATEWAY.fullmatch(name)
    assert match is not None  # `open_named` has matched it
    bare = match["id"]
    if match["account"] not in (None, client.account):
        raise UsageError(f"evaluator={name}: the gateway's account is {client.account!r}, not {match['account']!r}")
    full = f"accounts/{client.account}/evaluators/{bare}"
    client.get(full)  # it may have no revision yet
    found = client.get(f"{full}/versions/{match['version'] or _NEWEST}")
    version, snapshot = found["name"].rsplit("/", 1)[-1], found["snapshot"]
    if not _VERSION.fullmatch(version):
        raise UsageError(f"evaluator={name}: the gateway calls its revision {version[:80]!r}, which is no id")
    if snapshot.get("state") != "ACTIVE":
        why = (snapshot.get("status") or {}).get("message", "")
        raise UsageError(f"evaluator={name}: {found['name']} is {snapshot.get('state', 'not built')}, not ACTIVE {why}")
    criteria = snapshot.get("criteria") or []
    archive = None if criteria else _fetched(client, bare, version, newest=_NEWEST in found.get("alternateIds", []))
    return EvaluatorSource(
        name=full, version=version, criteria=criteria, archive=archive and str(archive),
        entry_point=snapshot.get("entryPoint", ""), requirements=snapshot.get("requirements", ""),
    )  # fmt: skip


def _fetched(client: GatewayClient, bare: str, version: str, *, newest: bool) -> Path:
    """The revision's archive. The contract has the newest one's only; gateways of this project give any."""
    if not newest and not client.ours:
        raise UsageError(
            f"evaluator={bare}/versions/{version}: this gateway hands out the source of the newest revision only; roll "
            "back to this one, or run an evaluation job there"
        )
    query = None if newest else {"versionId": version}
    answer = client.call("Gateway_GetEvaluatorSourceCodeEndpoint", {"evaluator_id": bare}, query=query)
    urls = answer["filenameToSignedUrls"]
    if len(urls) != 1:
        raise UsageError(f"evaluator={bare}: {len(urls)} files are its source; upload one archive")
    ((filename, url),) = urls.items()
    return client.fetch(url, home() / "cache" / "evaluators" / bare / version / f"source-{Path(filename).name}")
