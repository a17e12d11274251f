"""Change what the site reads in another way than the repository does: links, and lists without a blank line before.

In the repository, a page links to files by their paths. On the site, pages and pictures have other paths, and every
other file is a page of the repository.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

# Path in the repository to path on the site.
MOVED = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "eval/results/README.md": "results/files.md",
    "eval/results/methods.md": "results/methods.md",
    "eval/results/composition.md": "results/composition.md",
}
RESULTS = "eval/results/"
PICTURES = (".png", ".svg")
ORIGINS = {site: repository for repository, site in MOVED.items()}
# Badges are pictures of another host, for the pages of a repository.
BADGES = re.compile(r"^(?:!\[[^\]]*\]\(https://img\.shields\.io/[^)]*\) *)+$", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# The beginning of a list or of a table, in a quotation or not.
BEGINNING = re.compile(r"(?P<quote>(?:> ?)?)(?P<kind>\||- )")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return the text of a page with links that work on the site. MkDocs calls this."""
    source = page.file.src_uri
    folder = posixpath.dirname(ORIGINS.get(source, f"docs/{source}"))

    def rewrite(match: re.Match[str]) -> str:
        return match[1] + rewrite_link(match[2], folder, source, config.repo_url) + match[3]

    return LINK.sub(rewrite, separate_blocks(BADGES.sub("", markdown)))


def separate_blocks(markdown: str) -> str:
    """Put a blank line before every list and table, which Python's Markdown needs."""
    lines: list[str] = []
    for line in markdown.split("\n"):
        beginning = BEGINNING.match(line)
        if beginning and lines:
            prefix = beginning["quote"] + beginning["kind"]
            if lines[-1].strip("> ") and not lines[-1].startswith((prefix, " ")):
                lines.append(beginning["quote"].rstrip())
        lines.append(line)
    return "\n".join(lines)


def rewrite_link(link: str, folder: str, source: str, repository: str) -> str:
    """Return the target of a link on the site.

    Args:
        link: Target, as the document has it.
        folder: Folder of the document in the repository.
        source: Path of the page on the site.
        repository: Address of the repository.
    """
    if "://" in link or link.startswith(("#", "mailto:")):
        return link
    path, _, anchor = link.partition("#")
    target = find_on_site(posixpath.normpath(posixpath.join(folder, path)))
    if target is None:
        return (
            f"{repository.rstrip('/')}/blob/main/{posixpath.normpath(posixpath.join(folder, path))}"
        )
    relative = posixpath.relpath(target, posixpath.dirname(source) or ".")
    return f"{relative}#{anchor}" if anchor else relative


def find_on_site(path: str) -> str | None:
    """Return where a file of the repository is on the site, or None if it is not there."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith(RESULTS) and path.endswith(PICTURES):
        return "results/" + path.removeprefix(RESULTS)
    return path.removeprefix("docs/") if path.startswith("docs/") else None
