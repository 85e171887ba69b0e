"""What linters do not see: sleeping tests, endless modules, modules for odds and ends, stray paths."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import kestrel

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES_MAX = 600
PAUSE_S_MAX = 0.05
ODDS_AND_ENDS = {"util", "utils", "common", "helper", "helpers", "base", "misc", "tools"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".sh", ".json", ".cfg", ".lua", ".yml", ".yaml", ""}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/[\w.-]")
UNFINISHED = re.compile(r"\b" + "FIX" + r"ME\b|\bX{3}\b")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked() -> list[Path]:
    """Text files that belong to the tree: what git knows, or all of the package when git is not there."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True,
            capture_output=True,
        )
        paths = [ROOT / p for p in listing.stdout.decode().split("\0") if p]
    else:
        paths = [*SOURCES, *TESTS]
    return [p for p in paths if p.suffix in TEXT_SUFFIXES and p.is_file()]


def constant_sleeps(source: str) -> list[int]:
    """Lines that sleep for a number: a guess, unless it is the short pause of a loop that asks again."""
    lines: list[int] = []

    def look(node: ast.AST, in_loop: bool) -> None:
        if isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            seconds = first.value if called == "sleep" and isinstance(first, ast.Constant) else 0
            if seconds > (PAUSE_S_MAX if in_loop else 0):
                lines.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            look(child, in_loop or isinstance(node, ast.While))

    look(ast.parse(source), in_loop=False)
    return lines


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_sleeps_for_a_guess(path: Path) -> None:
    lines = constant_sleeps(path.read_text(encoding="utf-8"))
    assert not lines, f"{name(path)}: wait for the event itself, lines {lines}"


def test_the_search_for_sleeps_finds_them() -> None:
    guesses = "time.sleep(1)\nx = asyncio.sleep(0.1)\nsleep(2)\nwhile not done():\n    sleep(1)\n"
    fine = "asyncio.sleep(0)\nclock.sleep(delay)\nwhile not done():\n    time.sleep(0.01)\n"
    assert constant_sleeps(guesses) == [1, 2, 3, 5]
    assert constant_sleeps(fine) == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_opens_with_a_docstring_and_is_not_endless(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name(path)} does not say what it is for"
    lines = text.count("\n")
    assert lines <= LINES_MAX, f"{name(path)} has {lines} lines; find the two modules in it"


def test_no_module_is_for_odds_and_ends() -> None:
    stems = {part for path in SOURCES for part in path.relative_to(ROOT / "src").with_suffix("").parts}
    assert not stems & ODDS_AND_ENDS


def test_test_files_have_unique_names() -> None:
    """Folders of tests are no packages, so two files of one name would be one module. `parts` is one."""
    own = [path for path in TESTS if path.parent.name != "parts" and path.name != "conftest.py"]
    stems = [path.stem for path in own]
    assert sorted(stems) == sorted(set(stems))
    assert "__init__" not in stems


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in tracked()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


@pytest.mark.parametrize("line", ["cd {}work/tree", 'x = "{}home/ann/x"', "({}root/.cache)", "{}Users/ann"])
def test_the_search_for_places_finds_them(line: str) -> None:
    assert MACHINE_PATH.search(line.format("/"))
    assert not MACHINE_PATH.search("docs/work/x a.b/home/x https://example.org/home/x /homework/x")


def test_nothing_unfinished_is_merged() -> None:
    found = [
        name(path)
        for path in tracked()
        if path.suffix in {".py", ".sh", ".md"}
        and path != Path(__file__)
        and UNFINISHED.search(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_package_is_typed_for_its_users() -> None:
    assert (Path(kestrel.__file__).parent / "py.typed").is_file()


def test_the_license_is_apache_2_everywhere_it_is_named() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == kestrel.__version__


def test_the_readme_begins_where_a_reader_begins() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text


def test_every_link_between_documents_leads_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{name(page)}: {target}"
        for page in documents
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_decisions_are_numbered_without_gaps_listed_and_complete() -> None:
    folder = ROOT / "docs/adr"
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    index = (folder / "README.md").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]}. "), page.name
        for heading in ("## Context", "## Decision", "## Price"):
            assert text.count(f"\n{heading}\n") == 1, (page.name, heading)
        assert f"]({page.name})" in index


def test_the_glossary_is_in_order_and_has_each_word_once() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\*\*(.+?)\*\* — ", text, re.MULTILINE)
    assert len(words) > 30
    assert words == sorted(set(words), key=str.casefold)


def test_the_makefile_has_the_commands_that_documents_name() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "check", "bench", "docs", "clean", "help"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make --no-print-directory test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
