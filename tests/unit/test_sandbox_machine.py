"""Tiers are chosen or refused in words; the doctor says so; ids, imports and model programs."""

import json
import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from evaluators.protocol import Limits, Program, Status, Tier
from evaluators.sandbox import Sandbox, SandboxRefused, describe, jail, memory, run_code, self_check, shares_badly
from evaluators.sandbox import machine as this_machine
from evaluators.sandbox.identity import _range
from evaluators.sandbox.interpreter import interpreter, is_open, preloads
from evaluators.sandbox.machine import choose
from evaluators.sandbox.verdict import judge
from trainer.__main__ import main

SMALL = Limits(wall_seconds=60.0, cpu_seconds=60.0, memory_bytes=256 << 20)
SHORT = Limits(wall_seconds=60.0, cpu_seconds=1.0, memory_bytes=256 << 20)


def test_no_fence_is_refused_unless_the_operator_says_so() -> None:
    with pytest.raises(SandboxRefused, match="allow_none=True"):
        Sandbox(tier="none")
    with pytest.raises(ValueError, match="allowed: auto, strong, standard, landlock, none"):
        Sandbox(tier="bwrap")
    with Sandbox(tier="none", allow_none=True) as sandbox:
        assert sandbox.tier is Tier.NONE


def test_what_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(this_machine, "_asked", {})
    with pytest.raises(SandboxRefused, match=r"strong: gVisor \(its program is runsc\) is not installed: apt install"):
        Sandbox(tier="strong")
    with pytest.raises(SandboxRefused, match=r"standard by bwrap: bubblewrap .* is not installed: apt install"):
        Sandbox(tier="standard", launcher="bwrap")


def test_the_launcher_is_ours_and_bubblewrap_where_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    found = {(Tier.STANDARD, "own"): (now, ""), (Tier.STANDARD, "bwrap"): (now, "")}
    monkeypatch.setattr(this_machine, "_asked", found)
    monkeypatch.delenv("TRAINER_SANDBOX_LAUNCHER", raising=False)
    assert choose("auto", allow_none=False) == (Tier.STANDARD, "own")
    assert choose("standard", allow_none=False, launcher="bwrap") == (Tier.STANDARD, "bwrap")
    monkeypatch.setenv("TRAINER_SANDBOX_LAUNCHER", "bwrap")
    assert choose("auto", allow_none=False) == (Tier.STANDARD, "bwrap")
    monkeypatch.setenv("TRAINER_SANDBOX_LAUNCHER", "docker")
    with pytest.raises(ValueError, match="TRAINER_SANDBOX_LAUNCHER 'docker'; allowed: auto, own, bwrap"):
        choose("auto", allow_none=False)
    monkeypatch.delenv("TRAINER_SANDBOX_LAUNCHER")
    found[Tier.STANDARD, "own"] = now, "unshare: Operation not permitted"
    assert choose("auto", allow_none=False) == (Tier.STANDARD, "bwrap")
    with pytest.raises(SandboxRefused, match="standard: unshare: Operation not permitted; `python -m"):
        choose("standard", allow_none=False, launcher="own")


def test_an_interpreter_in_a_closed_folder_is_replaced_by_the_systems(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    program = tmp_path / "closed" / "python3.11"
    program.write_text("")
    program.chmod(0o755)
    assert not is_open(program)
    assert not is_open(tmp_path / "absent")
    assert is_open(Path("/usr/bin/env").resolve())
    found = Path(interpreter(None, for_all=True).executable)
    assert is_open(found) or found == Path(interpreter(None).executable)  # where the system has none that is new enough


def test_the_self_check_finds_nothing_here_and_the_doctor_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_check(Tier.STANDARD) == []
    found = describe()
    assert found.tier is Tier.STANDARD
    assert main(["doctor"]) == 0
    assert "evaluators run in tier: standard" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tier"] == "standard"


def test_the_self_check_notices_that_a_fence_is_missing() -> None:
    found = self_check(Tier.NONE)
    assert "it reached a listener on loopback" in found or "the jail could not be built" in found[0]


OUTLIVES = b"""
import os, time
def f(n):
    ready, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.write(told, b".")
            time.sleep(600)
        time.sleep(600)
    os.read(ready, 1)
    return n
"""


def test_what_left_its_process_group_ends_with_its_row_where_a_user_has_other_processes(monkeypatch) -> None:
    monkeypatch.setattr(jail, "_owns_all", lambda _tier: False)  # as for an ordinary user: kill(-1) would end all of it
    with closing(jail.Jail(Program({"p.py": OUTLIVES}, "p.py::f"), Limits(wall_seconds=60.0), tier=Tier.NONE)) as one:
        for n in range(3):
            verdict = judge(one.run([(b'{"n": %d}' % n, 0)]), 1, one.limits)[0]
            assert verdict.score is not None
            assert verdict.score.score == n
            assert len(memory.descendants(one.process.pid)) == 0


def test_remedies_name_the_setting() -> None:
    broken: dict[Tier, str] = dict.fromkeys(
        (Tier.STRONG, Tier.STANDARD, Tier.LANDLOCK), "unshare: Operation not permitted"
    )
    facts = {"cgroups": "none that this process may use", "user/max_user_namespaces": "0",
             "kernel/unprivileged_userns_clone": "0", "kernel/apparmor_restrict_unprivileged_userns": "1"}  # fmt: skip
    told = " ".join(this_machine._remedies(broken, facts))
    for word in ("apparmor_parser", "user.max_user_namespaces", "kernel.unprivileged_userns_clone", "systemd-run"):
        assert word in told


def test_ids_come_from_what_the_container_maps() -> None:
    assert _range("0 0 4294967295\n") == (0x7000_0000, 0x7001_0000)
    assert _range("0 100000 65536\n") == (32768, 65536)
    assert _range("0 1000 1\n1 100000 65536\n") == (1, 65537)
    with pytest.raises(OSError, match="one id"):
        _range("0 1000 1\n")


def test_only_the_standard_library_is_loaded_ahead() -> None:
    source = b"import json, re as r\nfrom collections.abc import Mapping\nimport numpy\nimport threading\n"
    source += b"def f():\n    import math\n"
    assert preloads([source]) == ["collections.abc", "json", "math", "re"]
    assert interpreter(None).packages == ()
    assert Path(interpreter(None).executable).is_absolute()


@pytest.mark.parametrize(
    ("source", "shares"),
    [("import subprocess", True), ("eval('1')", True), ("x = exec (y)", True), ("import re", False),
     ("def evaluate(row): return 1", False), ("from os import path", True)],
)  # fmt: skip
def test_programs_that_should_not_share_a_process_are_known(source: str, shares: bool) -> None:
    assert shares_badly([source.encode()]) is shares


def test_a_models_program_runs_apart() -> None:
    good = run_code("print(int(input()) * 2)", "21\n", SMALL)
    assert (good.status, good.exit_status, good.stdout, good.stderr) == (Status.OK, 0, "42\n", "")
    failed = run_code("raise SystemExit(3)", limits=SMALL)
    assert (failed.status, failed.exit_status) == (Status.ERROR, 3)
    broken = run_code("1/0", limits=SMALL)
    assert (broken.status, broken.exit_status) == (Status.ERROR, 1)
    assert broken.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert "child.py" not in broken.stderr
    assert run_code("while True: pass", limits=SHORT).status is Status.TIMEOUT
    assert run_code("x = bytearray(1 << 40)", limits=SMALL).status is Status.OOM
    assert run_code("import os; os.kill(os.getpid(), 11)", limits=SMALL).status is Status.CRASH
    assert run_code("while True: print('x' * 999)", limits=SMALL).status is Status.OUTPUT_FLOOD
    assert run_code("if __name__ == '__main__': print(1)", limits=SMALL).stdout == "1\n"


def test_a_models_program_finds_no_descriptor_and_no_judge() -> None:
    source = """
import os, sys
for number in range(3, 600):
    try:
        os.fstat(number)
        print("open", number)
    except OSError:
        pass
print(os.listdir("/program") if os.path.exists("/program") else [], len(sys.argv))
"""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]  # as in a busy gateway
    try:
        with Sandbox(workers=1) as sandbox:
            assert run_code(source, "secret input", SMALL, sandbox=sandbox).stdout == "[] 1\n"
    finally:
        for handle in held:
            os.close(handle)
