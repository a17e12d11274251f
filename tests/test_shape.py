"""The shape of the code: short functions, classes and files."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("dit_accel", "kernels", "pipelines", "eval", "assets", "studies")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TRITON = ROOT / "kernels/dit_accel_kernels/gpu"


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Return the number of lines of a definition without decorators and its own docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def definitions(path: Path, *kinds: type[ast.AST]) -> list[tuple[str, int]]:
    """Return the place and the number of code lines of every definition of a kind."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", code_lines(node))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]


def functions(path: Path) -> list[tuple[str, int]]:
    return definitions(path, ast.FunctionDef, ast.AsyncFunctionDef)


def test_functions_are_short() -> None:
    lengths = [length for path in FILES for _, length in functions(path)]
    assert statistics.median(lengths) <= 10


def test_no_function_is_long() -> None:
    files = [path for path in FILES if TRITON not in path.parents]
    found = [place for path in files for place, length in functions(path) if length > 60]
    assert not found, "\n".join(found)


def test_no_class_is_long() -> None:
    classes = [row for path in FILES for row in definitions(path, ast.ClassDef)]
    found = [place for place, length in classes if length > 250]
    assert not found, "\n".join(found)


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    found = [str(path.relative_to(ROOT)) for path, n in lengths.items() if n > 400]
    assert not found, "\n".join(found)
