"""The first promise: installing Kestrel never needs a compiler. Asks pyproject, the page and the wheels."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
PLATFORMS = {"Linux x86-64", "Linux aarch64", "macOS", "Windows"}
IMPORT_NAMES = {"dns": "dnspython"}
"""Top-level modules whose distribution has another name."""


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(r).name) for r in requirements}


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, without its head."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def base_closure() -> dict[str, metadata.Distribution]:
    """Every distribution that an installation without extras brings, as installed here."""
    found: dict[str, metadata.Distribution] = {}
    wanted = sorted(names(PROJECT["project"]["dependencies"]))
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = distribution = metadata.distribution(name)
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(canonicalize_name(requirement.name))
    return found


def is_pure(distribution: metadata.Distribution) -> bool:
    wheel = distribution.read_text("WHEEL") or ""
    tags = re.findall(r"^Tag: (\S+)$", wheel, re.MULTILINE)
    assert tags, f"{distribution.name} was not installed from a wheel"
    return all(tag.endswith("-none-any") for tag in tags)


def test_the_page_names_the_base_dependencies_and_no_others() -> None:
    assert {row[0] for row in table("Base")} == names(PROJECT["project"]["dependencies"])


def test_the_page_names_the_extras_and_no_others() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    declared = {(name, extra) for extra, requirements in extras.items() for name in names(requirements)}
    assert {(row[0], row[1]) for row in table("Extras")} == declared


def test_the_page_names_the_development_dependencies_and_no_others() -> None:
    assert {row[0] for row in table("Development")} == names(PROJECT["dependency-groups"]["dev"])


def test_every_dependency_has_a_reason() -> None:
    for heading in ("Base", "Extras", "Development"):
        assert all(len(row[-1]) > 10 for row in table(heading)), heading


def test_what_is_not_pure_python_is_known_to_have_wheels_for_every_platform() -> None:
    compiled = {name for name, distribution in base_closure().items() if not is_pure(distribution)}
    known = {row[0]: {p.strip() for p in row[2].split(",")} for row in table("Compiled")}
    assert compiled == set(known), "look for wheels on every platform, then mend docs/dependencies.md"
    assert all(platforms == PLATFORMS for platforms in known.values())


def test_every_import_of_the_package_is_declared() -> None:
    """A module that happens to be installed for the tests is not there for users."""
    declared = names(PROJECT["project"]["dependencies"])
    for requirements in PROJECT["project"]["optional-dependencies"].values():
        declared |= names(requirements)
    for path in sorted((ROOT / "src").rglob("*.py")):
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top != "kestrel":
                assert IMPORT_NAMES.get(top, top) in declared, f"{path.relative_to(ROOT)} imports {module}"


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def test_the_scan_for_imports_sees_every_form() -> None:
    tree = ast.parse("import a.b\ndef f():\n    from c.d import e\nfrom . import g\n")
    assert imported(tree) == {"a.b", "c.d"}
