"""Replace the committed contract with a newer OpenAPI file: `python scripts/refresh_contract.py NEW.json`.

Prints the operations and schemas that came, went or changed, so that the change can be read before it is committed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "trainer" / "gateway" / "contract.json"


def operations(document: dict[str, Any]) -> dict[str, Any]:
    """Every operation by method and path."""
    verbs = {"get", "post", "patch", "put", "delete"}
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in verbs
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines that tell what came (+), went (-) and changed (~)."""
    lines = [f"+ {name}" for name in sorted(new.keys() - old.keys())]
    lines += [f"- {name}" for name in sorted(old.keys() - new.keys())]
    return lines + [f"~ {name}" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]


def main() -> None:
    """Compare, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("new", type=Path, help="an OpenAPI 3.1 JSON file")
    new = json.loads(parser.parse_args().new.read_bytes())
    old = json.loads(TARGET.read_bytes())
    for line in differences(operations(old), operations(new)):
        print(line)
    for line in differences(old["components"]["schemas"], new["components"]["schemas"]):
        print(f"schema {line}")
    TARGET.write_text(json.dumps(new, ensure_ascii=False), encoding="utf-8")
    print(f"{len(operations(new))} operations in {TARGET}")


if __name__ == "__main__":
    main()
