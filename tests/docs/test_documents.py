"""The documents: short sentences, links that exist, commands that parse, snippets that run."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support.documents import (
    COMMENT,
    FENCE,
    LINK,
    OUTPUT,
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    links,
    sentences,
    tables,
)

from dit_accel import METHODS, Profile
from dit_accel.cli import cli
from dit_accel.generation.settings import RenderSettings, attention_settings
from dit_accel.runtime.presets import PRESETS
from dit_accel_assets.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES
from dit_accel_eval.settings import Setting
from dit_accel_pipelines import families

README = ROOT / "README.md"
OTHERS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
ALL = [*PAGES, *OTHERS, ROOT / "eval/results/README.md", ROOT / "examples/README.md"]
BANNED = ("likewise", "of which none", "the very same", "as it would be", "such calls", "so that")
RUNNER = """
import contextlib, io, json, sys
printed = []
for name, code in json.load(open(sys.argv[1])):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    printed.append(out.getvalue())
json.dump(printed, open(sys.argv[2], "w"))
"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
each_document = pytest.mark.parametrize("page", ALL, ids=name_of)


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@each_document
def test_sentences_are_short(page: Path) -> None:
    lengths = [len(sentence) for sentence in sentences(page.read_text())]
    longest = max(sentences(page.read_text()), key=len)
    assert len(longest) <= 35, " ".join(longest)
    assert sum(lengths) / len(lengths) <= 16


@each_document
def test_words_are_plain(page: Path) -> None:
    prose = " ".join(" ".join(s) for s in sentences(page.read_text())).lower()
    assert [phrase for phrase in BANNED if phrase in prose] == []


@each_document
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_links_every_page_of_docs() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    assert set(PAGES) - {README} <= linked


def check_command(arguments: list[str], command: click.Command, parent: Any = None) -> None:
    """Check that a command has the options of an argument list, and that their values are accepted."""
    context = click.Context(
        command, parent=parent, info_name=command.name, **command.context_settings
    )
    values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    for parameter in command.params:
        value = values.get(parameter.name)
        given = value if isinstance(value, list | tuple) else [value]
        given = [item for item in given if isinstance(item, str)]
        assert given or not parameter.required, f"{arguments} lacks {parameter.opts}"
        if not isinstance(parameter.type, click.Path):
            for item in given:
                parameter.type.convert(item, parameter, context)
    assert isinstance(command, click.Group) or not rest, f"{arguments}: {rest} is too much"
    if isinstance(command, click.Group) and rest:
        _, subcommand, rest = command.resolve_command(context, rest)
        assert subcommand is not None
        check_command(rest, subcommand, context)


def check_settings(arguments: list[str]) -> None:
    """Check the methods and knobs in an argument list."""
    values: dict[str, list[str]] = {}
    for option, value in itertools.pairwise(arguments):
        values.setdefault(option, []).append(value)
    if arguments[0] == "render":
        knobs = dict(text.split("=", 1) for text in values.get("--set", []))
        attention_settings(None, {"method": values.get("--method", ["svg-ear"])[0]}, knobs)
    if arguments[0] == "eval":
        for text in values["--methods"][0].split(","):
            if ".yaml" not in text:
                Setting.parse(text, RenderSettings(""))


@each_page
def test_commands_parse(page: Path) -> None:
    for arguments in commands(page):
        check_command(arguments, cli)
        if arguments:
            check_settings(arguments)


@each_page
def test_python_parses(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


@each_page
def test_profiles_are_profiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            Profile.from_dict(yaml.safe_load(block.text))


def run_snippets(page: Path, folder: Path, *, quick: bool) -> list[tuple[Block, str]]:
    """Run the Python snippets of a page in one process, each in its own namespace; return what each prints."""
    snippets = [block for block in blocks(page) if block.language == "python"]
    code = [(f"{page.name}:{b.line}", b.for_test(quick=quick)) for b in snippets]
    (folder / "code.json").write_text(json.dumps(code))
    roots = [ROOT, *(ROOT / name for name in ("kernels", "pipelines", "eval", "assets"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(folder / "code.json"), str(folder / "printed.json")],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads((folder / "printed.json").read_text())
    return list(zip(snippets, printed, strict=True))


def test_readme_snippets_run(tmp_path: Path) -> None:
    assert run_snippets(README, tmp_path, quick=True)


@pytest.mark.slow
@each_page
def test_snippets_run_as_written(page: Path, tmp_path: Path) -> None:
    printed = {b.line: text for b, text in run_snippets(page, tmp_path, quick=False)}
    last = None
    for block in blocks(page):
        if block.language == "python":
            last = block.line
        elif OUTPUT in block.before:
            assert last is not None
            assert without_seconds(printed[last]) == without_seconds(block.text)


def without_seconds(text: str) -> list[str]:
    """Return the lines of a report with its seconds left out and other fractions rounded to one digit."""
    lines = [line.strip() for line in text.strip().splitlines()]
    kept = [line for line in lines if not line.startswith("seconds")]
    return [re.sub(r"\d\.\d+", lambda n: f"{float(n[0]):.1f}", line) for line in kept]


def glossary() -> dict[str, tuple[str, int]]:
    """Return the definition of each term in the glossary, in lower case, and its place in the order."""
    entries = re.findall(r"^\*\*(.+?)\.\*\* (.*)$", (ROOT / "docs/glossary.md").read_text(), re.M)
    return {
        term: (text.lower(), number)
        for number, (names, text) in enumerate(entries)
        for term in re.split(r", | and ", names.lower())
    }


def mention(term: str) -> str:
    """Return the pattern of a term, also in the plural."""
    return (
        rf"\b{term.removesuffix('y')}(?:s|es|y|ies)?\b"
        if term[-1] == "y"
        else rf"\b{term}(?:s|es)?\b"
    )


def test_glossary_defines_terms_before_it_uses_them() -> None:
    terms = glossary()
    assert len(terms) > 10
    for term, (text, number) in terms.items():
        later = [other for other, (_, place) in terms.items() if place > number]
        assert [other for other in later if re.search(mention(other), text)] == [], term


def test_readme_explains_or_links_terms_before_it_uses_them() -> None:
    text = FENCE.sub("", COMMENT.sub("", README.read_text()))
    for term in glossary():
        used = explained = None
        name = term.removesuffix(" call") if "sparse" in term or "dense" in term else term
        pattern = rf"\*\*{name}|\b{name} is |\[[^\]]*\b{name}\w*\]\("
        for number, line in enumerate(text.splitlines()):
            if used is None and re.search(mention(term), LINK.sub("]", line), re.I):
                used = number
            if explained is None and re.search(pattern, line, re.I):
                explained = number
        assert used is None or (explained is not None and explained <= used), term


def test_tiny_world_page_has_its_words_and_sizes() -> None:
    words, sizes = tables(ROOT / "docs/tiny-world.md")
    kinds: dict[str, Iterable[str]] = {
        "colour": COLOURS,
        "shape": SHAPES,
        "motion": MOTIONS,
        "background": BACKGROUNDS,
    }
    listed = {row[0]: row[1].split(";")[0].split(", ") for row in words[1:]}
    assert listed == {kind: list(names) for kind, names in kinds.items()}
    assert sizes[1:] == [
        [f"`{name}`", f"{height} x {width}", str(frames), f"{count_tokens(name):,}"]
        for name, (height, width, frames) in SIZES.items()
    ]


def count_tokens(size: str) -> int:
    """Return the number of tokens of a size: one for 16 x 16 pixels and four frames; the first frame is alone."""
    height, width, frames = SIZES[size]
    return (height // 16) * (width // 16) * ((frames - 1) // 4 + 1)


def test_extras_of_the_readme_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (table,) = (t for t in tables(README) if t[0][0] == "Extra")
    extras = {row[0].strip("`") for row in table[1:]}
    assert extras <= set(project["optional-dependencies"])


def test_families_of_the_readme_exist() -> None:
    known = {family.name for family in families()}
    (table,) = (t for t in tables(README) if t[0][0] == "Family")
    for row in table[1:]:
        assert set(re.findall(r"`([\w.-]+)`", row[0])) <= known
    assert f"{len(known)} families" in README.read_text()


def test_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [path.parent.name for path in (ROOT / "dit_accel").glob("*/__init__.py")]
    assert [room for room in rooms if f"{room}/" not in text] == []


def test_families_page_lists_every_family() -> None:
    (table,) = tables(ROOT / "docs/families.md")
    listed = {row[0].strip("`"): row[4] == "yes" for row in table[1:]}
    assert listed == {family.name: family.guidance for family in families()}


@pytest.mark.parametrize("name", METHODS)
def test_methods_page_lists_every_knob(name: str) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE))
    knobs = {field.name: str(field.default) for field in dataclasses.fields(METHODS[name])}
    assert listed == knobs


def test_presets_of_the_page_are_those_of_the_package() -> None:
    page = ROOT / "docs/schedules-and-profiles.md"
    (table,) = (t for t in tables(page) if t[0][0] == "Preset")
    listed = {row[0].strip("`"): (float(row[1]), float(row[2])) for row in table[1:]}
    assert listed == {name: (p.density, p.threshold) for name, p in PRESETS.items()}
