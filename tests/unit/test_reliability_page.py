"""The page of promises names its proofs: each of them must exist, or the promise is only words."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
PROOF = re.compile(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`")
PROOFS = sorted(set(PROOF.findall(PAGE.read_text(encoding="utf-8"))))


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_page_names_proofs():
    assert len(PROOFS) > 20


@pytest.mark.parametrize(("path", "test"), PROOFS, ids=[f"{p}::{t}" if t else p for p, t in PROOFS])
def test_each_proof_exists(path: str, test: str):
    assert (ROOT / path).is_file(), f"docs/reliability.md names {path}, which does not exist"
    if test:
        assert test in functions_in(ROOT / path), (
            f"docs/reliability.md names {test}, which {path} does not have"
        )


def rows(heading: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what")]


@pytest.mark.parametrize("heading", ["Promises", "What can run twice, and why"])
def test_each_row_of_the_tables_has_a_proof(heading: str):
    found = rows(heading)
    assert found
    assert [row for row in found if not PROOF.search(row)] == []
