"""Print the requirements of a dependency group of pyproject.toml, one a line, for `pip -r`.

Called by tools/setup.sh, because pip before 25.1 does not know dependency groups. `base` has no
group: what the package itself needs comes with the package. Standard library only.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def group(pyproject: dict[str, Any], name: str) -> list[str]:
    """The requirements of dependency group `name`, with included groups (PEP 735) in place."""
    requirements: list[str] = []
    for entry in pyproject["dependency-groups"][name]:
        if isinstance(entry, str):
            requirements.append(entry)
        else:
            requirements.extend(group(pyproject, entry["include-group"]))
    return requirements


def main() -> None:
    level = sys.argv[1]
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in [] if level == "base" else group(tomllib.loads(text), level):
        print(requirement)


if __name__ == "__main__":
    main()
