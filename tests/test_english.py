"""The docstrings: each begins with a sentence, not with a fragment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "kernels": ROOT / "kernels",
    "pipelines": ROOT / "pipelines",
    "assets": ROOT / "assets",
    "eval": ROOT / "eval",
    "studies": ROOT / "studies",
    **{path.name: path for path in sorted((ROOT / "dit_accel").iterdir()) if path.is_dir()},
}
FRAGMENTS = ("Of", "What", "Likewise", "As", "Whether", "Where")


def first_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the first line of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.splitlines()[0]


def fragments(files: Iterator[Path]) -> list[str]:
    """Return the docstrings that begin with a fragment, with their places."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(files)
        for line, text in first_lines(path)
        if text.split()[0].rstrip(",:") in FRAGMENTS
    ]


@pytest.mark.parametrize("room", [name for name in ROOMS if name != "__pycache__"])
def test_docstrings_begin_with_a_sentence(room: str) -> None:
    found = fragments(ROOMS[room].rglob("*.py"))
    assert not found, "\n".join(found)


def test_docstrings_of_the_top_level_begin_with_a_sentence() -> None:
    found = fragments((ROOT / "dit_accel").glob("*.py"))
    assert not found, "\n".join(found)
