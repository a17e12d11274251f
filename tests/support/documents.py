"""Read the Markdown documents: their prose, code blocks, links and commands."""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
REPLACEMENT = re.compile(r"<!-- (quick test|test): `(.+?)` -> `(.*?)` -->")
OUTPUT = "<!-- output -->"
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: Word after the opening fence.
        text: Code inside the fence.
        line: Line of the opening fence, counted from 1.
        before: Text between the previous block and this one.
    """

    language: str
    text: str
    line: int
    before: str

    def for_test(self, *, quick: bool) -> str:
        """Return the code with the replacements that comments above the block name.

        ``<!-- test: `A` -> `B` -->`` always replaces A by B. ``<!-- quick test: ... -->`` replaces it only in
        the quick test.

        Raises:
            AssertionError: if the block does not contain A.
        """
        text = self.text
        for kind, old, new in REPLACEMENT.findall(self.before):
            if kind == "test" or quick:
                assert old in text, f"line {self.line}: the block has no {old!r}"
                text = text.replace(old, new)
        return text


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page in their order."""
    text, found, end = page.read_text(), [], 0
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, text[end : match.start()]))
        end = match.end()
    return found


def sentences(text: str) -> list[list[str]]:
    """Return the words of every sentence of a Markdown text, without code blocks, tables, headings and images.

    Inline code counts as one word, and a link as the words that are shown.
    """
    text = COMMENT.sub("", FENCE.sub("", text))
    text = re.sub(r"\[?!\[[^\]]*\]\([^)]*\)(\]\([^)]*\))?", "", text)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "").replace("*", "")
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        line = re.sub(r"^[>\s]+", "", line)
        if not line or line.startswith(("#", "|")):
            paragraphs.append([])
        elif re.match(r"([-+]|\d+\.) ", line):
            paragraphs.append([line.split(" ", 1)[1]])
        else:
            paragraphs[-1].append(line)
    parts = (part for p in paragraphs for part in re.split(r"(?<=[.!?])[\")]?\s+", " ".join(p)))
    words = ([w for w in part.split() if re.search(r"\w", w)] for part in parts)
    return [sentence for sentence in words if sentence]


def links(page: Path) -> list[str]:
    """Return the targets of the links and images of a page that point into the repository."""
    targets = LINK.findall(FENCE.sub("", page.read_text()))
    return [t for t in targets if not t.startswith(("http:", "https:"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every dit-accel command in the page's shell blocks."""
    found = []
    for block in blocks(page):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for name in ("dit-accel", "dit_accel"):
                    if name in words:
                        found.append(words[words.index(name) + 1 :])
    return found


def tables(page: Path) -> list[list[list[str]]]:
    """Return the tables of a page: rows of cells, the heading first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in FENCE.sub("", page.read_text()).splitlines():
        row = line.startswith("|")
        if row and not inside:
            found.append([])
        if row and not re.fullmatch(r"[|\s:-]+", line):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = row
    return found


def run_code(code: str, file: Path) -> dict[str, Any]:
    """Write code into a file, run it under the name of an example, and return its names."""
    file.write_text(code)
    return runpy.run_path(str(file), run_name="example")
