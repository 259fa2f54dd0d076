"""Recipes in percent format become notebooks that hold the same program."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("export_notebooks", ROOT / "scripts" / "export_notebooks.py")
assert _SPEC is not None and _SPEC.loader is not None
export = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(export)


def test_cells_by_hand():
    source = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n\n\n# %%\n\n# %% [markdown]\n# end\n"
    assert export.cells(source) == [("markdown", "# Title\n\ntext"), ("code", "x = 1"), ("markdown", "end")]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_the_code_cells_are_the_program(path):
    document = export.notebook(path.read_text())
    code = "\n".join("".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code")
    compile(code, path.name, "exec")
    program = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in code.splitlines() if line and not line.startswith("#")] == program
    assert document["cells"][0]["cell_type"] == "markdown"
