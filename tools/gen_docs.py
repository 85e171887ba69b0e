"""Write the generated documents, or say which are stale.

    python tools/gen_docs.py --write | --check

Called by `make docs`, `make docs-check` and `make test`. All reading and writing is here, so that
the generators stay pure. To add a document, add its line to `documents`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cli_reference import cli_markdown
from kestrel.protocol import schema

ROOT = Path(__file__).resolve().parent.parent


def documents() -> dict[str, str]:
    """Path in the tree → what the file must contain."""
    source = message_sources()
    head = (ROOT / "tools/protocol/head.md").read_text(encoding="utf-8")
    examples = json.loads((ROOT / "tools/protocol/examples.json").read_text(encoding="utf-8"))
    return {
        "docs/protocol.md": schema.protocol_markdown(source, head, examples),
        "docs/cli.md": cli_markdown(),
        "docs/protocol.schema.json": schema.json_schema_text(source),
    }


def message_sources() -> str:
    """The text of all modules that define messages."""
    return "\n".join(Path(str(m.__file__)).read_text(encoding="utf-8") for m in schema.SOURCES)


def stale() -> list[str]:
    """Documents that are missing or differ from what they must contain."""
    found = []
    for name, text in documents().items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write every document that is stale")
    what.add_argument("--check", action="store_true", help="exit code 1 if a document is stale")
    options = parser.parse_args()
    names = stale()
    if options.write:
        for name in names:
            (ROOT / name).write_text(documents()[name], encoding="utf-8")
            print(f"docs: wrote {name}")
        return 0
    for name in names:
        print(f"docs: {name} is stale: run `make docs` and commit what it wrote", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
