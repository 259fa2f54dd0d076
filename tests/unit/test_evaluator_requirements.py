"""requirements.txt: packages of the index are taken, all other sources refused by name; builds on a tiny index."""

import zipfile
from pathlib import Path

import pytest

from evaluators.build import Build, Builder, BuildState, reason
from evaluators.requirements import RequirementRefused, read_requirements

TAKEN = """\
# a comment
numpy>=1.26,<3
requests[socks,security] == 2.32.* ; python_version >= "3.9" and sys_platform != "win32"
Pillow  # picture
zope.interface ~=6.0
six==1.16.0 --hash=sha256:0123abcdef
torch===2.1.0+cpu
continued\\
>=1
"""


def test_plain_requirements_are_taken() -> None:
    assert [line.split()[0] for line in read_requirements(TAKEN)] == [
        "numpy>=1.26,<3", "requests[socks,security]", "Pillow", "zope.interface", "six==1.16.0", "torch===2.1.0+cpu",
        "continued",
    ]  # fmt: skip
    assert read_requirements("\ufeff\r\n  \n# nothing\n") == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-e .", "an editable install"),
        ("--editable=git+https://h/x", "an editable install"),
        ("-r other.txt", "another requirements file"),
        ("-rother.txt", "another requirements file"),
        ("-c limits.txt", "a constraints file"),
        ("-i https://h/simple", "another index"),
        ("--index-url https://h/simple", "another index"),
        ("--extra-index-url=https://h/simple", "another index"),
        ("--find-links ./wheels", "another place to look"),
        ("-f wheels", "another place to look"),
        ("--trusted-host h", "a host without certificate"),
        ("--no-binary :all:", "a build from source"),
        ("--pre", "pre-releases"),
        ("--config-settings=x", "an option"),
        ("six --global-option=x", "an option"),
        ("six; python_version>'3' --config-settings=x", "an option"),
        ("git+https://h/x.git", "version control"),
        ("x @ git+ssh://h/x", "version control"),
        ("https://h/x.whl", "a URL"),
        ("x @ https://h/x.whl", "a URL"),
        ("x@file:///etc/passwd", "a URL"),
        ("x[extra] @ file:x.whl", "a path|a URL|no requirement"),
        ("./local", "a path"),
        ("../up", "a path"),
        ("/abs", "a path"),
        ("~/home", "a path"),
        ("C:\\x", "a path"),
        ("folder/x", "a path"),
        ("x-1.0-py3-none-any.whl", "a path"),
        ("six; rm -rf", "an option"),
        ("six$(id)", "no requirement of the form"),
        ("six\x00", "no requirement of the form"),
    ],
)
def test_other_sources_are_refused_by_name(line: str, why: str) -> None:
    with pytest.raises(RequirementRefused, match=why) as refused:
        read_requirements(f"six\n{line}\n")
    assert "line 2" in str(refused.value)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip is configured to find packages in, with one wheel; no index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "planted-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("planted.py", "VALUE = 7\n")
        wheel.writestr("planted-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
        wheel.writestr("planted-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("planted-1.0.dist-info/RECORD", "")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PLANTED_TOKEN", "planted-secret-token")
    return folder


def test_a_build_is_made_once_and_published_whole(wheels: Path, tmp_path: Path) -> None:
    told: list[Build] = []
    builder = Builder(tmp_path / "environments")
    first = builder.build("planted==1.0\n", tell=told.append)
    assert (first.state, first.reused) == (BuildState.ACTIVE, False), first.message
    assert [one.state for one in told] == [BuildState.BUILDING]
    assert first.python is not None
    [module] = Path(first.python).parents[1].glob("lib/python*/site-packages/planted.py")
    assert module.read_text() == "VALUE = 7\n"
    again = builder.build("# the same\nplanted==1.0\n", tell=told.append)
    assert (again.reused, again.python, len(told)) == (True, first.python, 1)
    assert sorted(path.suffix for path in builder.folder.iterdir()) == ["", ".log"]
    assert all("planted-secret-token" not in path.read_text() for path in builder.folder.glob("*.log"))


def test_a_wrong_requirement_fails_readably_and_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    builder = Builder(tmp_path / "environments")
    for text, words in (
        ("no-such-package-of-ours==3", "there is no package that fits 'no-such-package-of-ours==3' in the index"),
        ("git+https://h/x", "requirements.txt line 1: 'git+https://h/x': version control is not allowed"),
    ):
        build = builder.build(text)
        assert build.state is BuildState.BUILD_FAILED
        assert build.message.startswith(words)
        assert build.log is not None and build.log.stat().st_size > 0
    assert {path.suffix for path in builder.folder.iterdir()} == {".log"}


def test_no_requirements_need_no_environment(tmp_path: Path) -> None:
    build = Builder(tmp_path / "environments").build("# nothing\n")
    assert (build.state, build.python) == (BuildState.ACTIVE, None)


def test_reasons_are_one_readable_line() -> None:
    conflict = (
        "ERROR: Cannot install a and b because these\n\nThe conflict is caused by:\n    a 1 depends on c==1\n    b 1"
    )
    assert (
        reason(conflict)
        == "a and b cannot be installed: no versions fit together (or exist as wheels): a 1 depends on c==1"
    )
    assert reason("x\nERROR: Exception: NewConnectionError") == "the package index cannot be reached"
    assert reason("\nlast words\n") == "pip failed: last words"
