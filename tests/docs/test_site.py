"""The site: links that lead somewhere, and a page for every family with a script that fits diffusers."""

import ast
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import yaml
from click.testing import CliRunner
from support.documents import ROOT, run_code, sentences

from dit_accel.cli import cli
from dit_accel_pipelines import families as all_families

SITE = ROOT / "docs/site"
REPOSITORY = "https://example.org/project"
FAMILIES = {family.name: family for family in all_families()}


@pytest.fixture(autouse=True)
def site_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SITE)


@pytest.fixture(scope="module")
def families() -> list[dict[str, Any]]:
    return json.loads(CliRunner().invoke(cli, ["models", "--json"]).output)


def examples() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((SITE / "models.yaml").read_text())


@pytest.mark.parametrize(
    ("link", "source", "target"),
    [
        ("methods.md#svg", "getting-started.md", "methods.md#svg"),
        ("../README.md#install", "getting-started.md", "index.md#install"),
        ("docs/methods.md", "index.md", "methods.md"),
        ("eval/results/demo-strip.png", "index.md", "results/demo-strip.png"),
        (
            "../eval/results/one_step.json",
            "results.md",
            f"{REPOSITORY}/blob/main/eval/results/one_step.json",
        ),
        ("../../docs/results.md", "results/files.md", "../results.md"),
        ("#limits", "index.md", "#limits"),
        ("https://arxiv.org/abs/2505.18875", "methods.md", "https://arxiv.org/abs/2505.18875"),
        ("images/svg.png", "methods.md", "images/svg.png"),
    ],
)
def test_links_are_rewritten_for_the_site(link: str, source: str, target: str) -> None:
    import links

    folder = str(Path(links.ORIGINS.get(source, f"docs/{source}")).parent)
    assert links.rewrite_link(link, folder, source, REPOSITORY) == target


@pytest.mark.parametrize(
    ("text", "separated"),
    [
        ("words\n- one\n- two", "words\n\n- one\n- two"),
        ("> words\n> - one\n> - two", "> words\n>\n> - one\n> - two"),
        ("```\n| a |\n|---|\n| b |", "```\n\n| a |\n|---|\n| b |"),
        ("- one\n  more\n- two", "- one\n  more\n- two"),
    ],
)
def test_lists_and_tables_stand_apart(text: str, separated: str) -> None:
    import links

    assert links.separate_blocks(text) == separated


def test_every_family_has_a_page_in_plain_words(families: list[dict[str, Any]]) -> None:
    import recipe_page

    facts = json.loads((SITE / "models.json").read_text())
    figures = yaml.safe_load((SITE / "figures.yaml").read_text())
    assert {family["family"] for family in families} == set(facts) >= set(figures)
    index = recipe_page.index_page(families)
    for family in families:
        name = family["family"]
        page = recipe_page.recipe_page(
            family, examples().get(name), facts[name], figures.get(name, ())
        )
        assert f"({family['family']}.md)" in index
        assert all(recipe["name"] in page for recipe in family["recipes"])
        assert max(len(sentence) for sentence in sentences(page)) <= 35, page


def test_examples_are_of_families_and_of_diffusers(families: list[dict[str, Any]]) -> None:
    names = {family["family"] for family in families}
    assert set(examples()) <= names
    files = {
        path: path.read_text()
        for path in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py")
    }
    for name, example in examples().items():
        path = next(p for p in files if f"class {example['pipeline']}(" in files[p])
        assert any(example["model"] in files[p] for p in files if p.parent == path.parent), name
        pipeline = getattr(diffusers, example["pipeline"])
        if "dummy" in pipeline.__module__:  # it needs a package that is not installed
            continue
        needed = {
            parameter.name
            for parameter in inspect.signature(pipeline.__call__).parameters.values()
            if parameter.default is parameter.empty and parameter.name not in ("self", "kwargs")
        }
        assert needed <= {"prompt", "image"}, name
        assert "image" not in needed or example.get("image"), name


def run_script(family: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Run the script of a family with its real pipeline's signature and a result as that class returns it.

    Returns the names of what the script wrote.
    """
    import recipe_page

    example = examples()[family["family"]]
    page = "\n".join(recipe_page.script(family, example))
    code = re.search(r"```python\n(.*)```", page, re.DOTALL)
    assert code is not None
    pipeline = getattr(diffusers, example["pipeline"])
    if "dummy" in pipeline.__module__:  # it needs a package that is not installed
        ast.parse(code[1])
        return []
    signature, source = (f(pipeline.__call__) for f in (inspect.signature, inspect.getsource))
    output = set(re.findall(r"return \w+Output\(\s*(\w+)=", source))
    written: list[str] = []
    image = SimpleNamespace(save=written.append)

    class Pipe(SimpleNamespace):
        def __call__(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
            signature.bind(self, *args, **kwargs)
            return SimpleNamespace(**{name: [image] for name in output})

    pipe = Pipe(enable_sparse_attention=lambda: None, attention_report=lambda: "report")
    pipe.to = lambda _: pipe
    monkeypatch.setattr(pipeline, "from_pretrained", lambda *_, **__: pipe)
    monkeypatch.setattr(
        diffusers.utils, "export_to_video", lambda _, path, **__: written.append(path)
    )
    monkeypatch.setattr(diffusers.utils, "load_image", lambda path: path)
    run_code(code[1], folder / "script.py")
    return written


@pytest.mark.parametrize("name", list(examples()))
def test_scripts_fit_their_pipelines(
    name: str, families: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (family,) = (row for row in families if row["family"] == name)
    written = run_script(family, monkeypatch, tmp_path)
    assert set(written) <= {"clip.mp4", "image.png"}
    assert written or name == "consisid"


QUICK = ("wan", "flux", "cogvideox", "cosmos", "latte")
OTHERS = [name for name in FAMILIES if name not in QUICK]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
def test_facts_are_those_of_diffusers_and_the_declarations(name: str) -> None:
    import collect

    facts = json.loads((SITE / "models.json").read_text())
    assert collect.collect(FAMILIES[name], examples().get(name)) == facts[name]


def test_badges_stay_in_the_repository() -> None:
    import links

    readme = (ROOT / "README.md").read_text()
    assert "img.shields.io" in readme
    assert "img.shields.io" not in links.BADGES.sub("", readme)


def test_no_two_pages_have_one_address() -> None:
    import links

    sources = [path.name for path in (ROOT / "docs").glob("*.md")] + list(links.MOVED.values())
    addresses = [re.sub(r"(^|/)index\.md$|\.md$", "", source) for source in sources]
    assert len(addresses) == len(set(addresses))
