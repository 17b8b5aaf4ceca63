"""The shape of the code, held by a test: sizes, docstrings, nothing of anybody's machine."""

import ast
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("face_mllm", "data_pipeline", "eval")
MAX_FUNCTION, MEDIAN_FUNCTION, MAX_FILE, MIN_DOCSTRINGS = 60, 13, 400, 0.9
TEXT = {".py", ".yaml", ".yml", ".md", ".toml", ".json", ".jinja", ".html", ".sh", ""}
# somebody's home or work folder, in parts so that this file does not match itself
HOMES = "|".join(("home", "root", "work", "Users"))
MACHINE_PATH = re.compile(rf"(?<![\w.}}/])/(?:{HOMES})/\w")
TEMP_PATH = re.compile(r"(?<![\w.}/])/t" + r"mp/\w")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, the docstring not counted: explaining is free."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_functions_are_short():
    sizes = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": length(node)
        for path in python_files(*PACKAGES, "benchmarks")
        for node in functions(path)
    }
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION} == {}
    assert statistics.median(sizes.values()) <= MEDIAN_FUNCTION


def test_files_are_short():
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*PACKAGES, "benchmarks", "tests")
    }
    assert {name: size for name, size in sizes.items() if size > MAX_FILE} == {}


def test_public_things_have_docstrings():
    documented, bare = 0, []
    for path in python_files(*PACKAGES):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in public_nodes(tree):
            if ast.get_docstring(node) is None:
                bare.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}")
            else:
                documented += 1
    assert documented / (documented + len(bare)) >= MIN_DOCSTRINGS, bare


def public_nodes(tree: ast.Module):
    """The module, its public classes and functions, and the public methods of those classes."""
    yield tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
                yield from (method for method in methods if not method.name.startswith("_"))


def test_nothing_names_a_path_of_one_machine():
    found = []
    folders = (*PACKAGES, "tests", "benchmarks", "docs", "stage_configs", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*files, ROOT / "README.md", ROOT / "pyproject.toml"]:
        if path.suffix not in TEXT or "__pycache__" in path.parts or path.stat().st_size > 1 << 20:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or TEMP_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []
