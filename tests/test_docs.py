"""The documentation: it has every public name, builds without a warning, and its links and pictures lead somewhere.

The blocks of Python in README.md and docs/*.md are tests of their own (conftest.py in the root).
"""

import ast
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchconv

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

#: Modules whose public names are in torchconv.__all__.
INTERNAL = {"activations", "blocks", "distributed", "gate", "layers", "padding", "pooling", "registry"}


def public_names(module: Path) -> list[str]:
    """Its __all__, or else the functions and classes with a docstring of several lines: those of helpers have one."""
    tree = ast.parse(module.read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [node.name for node in definitions if "\n" in (ast.get_docstring(node) or "") and node.name[0] != "_"]


def run(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, **options)


def test_every_public_name_is_in_the_api():
    described = set(re.findall(r"^\.\. auto\w+:: (torchconv[\w.]*)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    missing = {f"torchconv.{name}" for name in torchconv.__all__} - described
    # What torchconv exports need not stand there once more under the name of its module.
    objects = [getattr(torchconv, name) for name in torchconv.__all__]
    exported = {f"{object.__module__}.{object.__qualname__}" for object in objects if callable(object)}
    for module in (ROOT / "torchconv").glob("[!_]*.py"):
        if module.stem not in INTERNAL:
            missing |= {f"torchconv.{module.stem}.{name}" for name in public_names(module)} - described - exported
    assert sorted(missing) == []


@pytest.mark.system
def test_the_site_builds_without_a_warning(tmp_path):
    result = run("-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees", "docs", tmp_path / "site")
    assert result.returncode == 0, result.stderr
    assert {page.stem for page in (tmp_path / "site").glob("*.html")} >= {page.stem for page in DOCS.glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    here = [target.split("#")[0] for target in targets if not re.match(r"\w+:|#", target)]
    assert [target for target in here if not (page.parent / target).exists()] == []


@pytest.mark.system
def test_every_block_is_a_test(pytestconfig):
    """None is passed over, here or by a plain `pytest`."""
    assert {"README.md", "docs"} <= set(pytestconfig.getini("testpaths"))
    collected = run("-m", "pytest", "--collect-only", "--quiet", "README.md", "docs").stdout
    for page in PAGES:
        blocks = len(re.findall(r"^ *```python", page.read_text(), re.MULTILINE))
        assert collected.count(f"{page.relative_to(ROOT)}::") == blocks, page.name


def test_guarantees_are_tested():
    """Each line of a table of promises, or of faults that tests caught, names tests, and these exist."""
    text = (DOCS / "guarantees.md").read_text()
    lines = [line for line in text.partition("## Seen")[0].splitlines() if re.match(r"\| [A-Za-z]", line)]
    assert len(lines) > 40
    for line in lines:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line)
        assert named or line.startswith(("| promise", "| fault")) or "`tests/native`" in line, line
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@pytest.mark.system
def test_the_pictures_are_those_of_the_script(tmp_path):
    result = run("docs/figures.py", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    drawn, kept = tmp_path.iterdir(), list((DOCS / "images").glob("chapter_*.png"))
    assert sorted(path.name for path in drawn) == sorted(path.name for path in kept)
    assert max(path.stat().st_size for path in kept) < 100_000


def test_the_readme_shows_what_its_code_prints():
    """A block of text after a block of code is what that prints."""
    blocks = re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for code, text in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == text


def test_contributing_names_files_and_functions_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:csrc|torchconv|tests|benchmarks)/[\w/]+\.\w+|csrc/[\w/]+/)`", text)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rows = re.findall(r"^\| [^|]+ \| `([\w/.]+\.\w+)`: ((?:`\w+`(?:, )?)+) \|$", text, re.MULTILINE)
    assert len(rows) >= 8
    missing = [
        (path, name)
        for path, names in rows
        for name in re.findall(r"\w+", names)
        if not re.search(rf"\b{name}\b", (ROOT / path).read_text())
    ]
    assert missing == []
