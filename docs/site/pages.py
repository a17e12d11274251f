"""Write the pages of the site that are no files in docs: the start page, recipes, the reference and results.

MkDocs calls `on_files`. It needs neither torch nor diffusers, because the command line starts without them.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from links import MOVED, PICTURES, RESULTS
from mkdocs.structure.files import File
from recipe_page import index_page, recipe_page

# Commands that list something import these, and use nothing of them.
UNUSED = ("torch", "diffusers", "numpy")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

VERBS = (
    "acceleration.enable_acceleration",
    "acceleration.disable_acceleration",
    "acceleration.calibrate_mag_cache",
    "api.enable_sparse_attention",
    "api.disable_sparse_attention",
    "api.enable_quantized_attention",
    "api.disable_quantized_attention",
    "api.enable_perturbed_guidance",
    "api.disable_perturbed_guidance",
    "api.attention_report",
)
COMMANDS = """\
# Command line

::: mkdocs-click
    :module: dit_accel.cli
    :command: cli
    :prog_name: dit-accel
    :depth: 1
    :style: table
"""
CLASSES = {
    "Settings": (
        "dit_accel.runtime.profile.Profile",
        "dit_accel.core.schedule.Schedule",
        "dit_accel.core.schedule.Rule",
        "dit_accel.core.schedule.Guard",
    ),
    "Runs": (
        "dit_accel.runtime.session.Session",
        "dit_accel.runtime.report.AttentionReport",
        "dit_accel.runtime.handles.QuantizationHandle",
    ),
    "Guidance": (
        "dit_accel.guidance.config.PerturbedGuidance",
        "dit_accel.guidance.heads.HeadSet",
        "dit_accel.runtime.handles.GuidanceHandle",
    ),
    "Your own method": (
        "dit_accel.methods.base.Method",
        "dit_accel.core.attention_call.AttentionCall",
        "dit_accel.core.attention_call.Plan",
    ),
    "Your own family": (
        "dit_accel_pipelines.registry.register_family",
        "dit_accel_pipelines.family.Family",
    ),
    "Errors": ("dit_accel.errors",),
}


def on_config(config: Any, **_: Any) -> Any:
    """Add the page of every family to the navigation."""
    recipes = next(entry["Recipes"] for entry in config.nav if "Recipes" in entry)
    for output in ("video", "image"):
        names = [row["family"] for row in ask("models") if row["output"] == output]
        pages = [{name: f"recipes/{name}.md"} for name in names]
        recipes.append({f"{output.capitalize()}s": pages})
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the defaults of options that have none, which mkdocs-click prints as an object of click."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages to the files of the site."""
    for path, content in (read_pages() | write_pages()).items():
        files.append(File.generated(config, path, content=content))
    return files


def read_pages() -> dict[str, str | bytes]:
    """Return documents and pictures of the repository by their paths on the site."""
    pages: dict[str, str | bytes] = {
        page: (ROOT / path).read_text() for path, page in MOVED.items()
    }
    pictures = [path for path in (ROOT / RESULTS).iterdir() if path.suffix in PICTURES]
    return pages | {f"results/{path.name}": path.read_bytes() for path in pictures}


def write_pages() -> dict[str, str]:
    """Return the pages that are made, by their paths on the site."""
    families = ask("models")
    examples = yaml.safe_load((HERE / "models.yaml").read_text())
    facts = json.loads((HERE / "models.json").read_text())
    figures = yaml.safe_load((HERE / "figures.yaml").read_text())
    recipes = {
        f"recipes/{name}.md": recipe_page(
            family, examples.get(name), facts[name], figures.get(name, ())
        )
        for name, family in ((family["family"], family) for family in families)
    }
    return recipes | {
        "recipes/index.md": index_page(families),
        "reference/python.md": python_page(),
        "reference/methods.md": methods_page(),
        "reference/kernels.md": kernels_page(),
        "reference/commands.md": COMMANDS,
    }


@functools.cache
def ask(*arguments: str) -> Any:
    """Return what a command of dit-accel prints as JSON."""
    command = [sys.executable, "-m", "dit_accel", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)


def on_startup(**_: Any) -> None:
    """Put empty modules in the place of packages that are not installed, also for the commands."""
    folder = Path(tempfile.mkdtemp(prefix="dit-accel-docs-"))
    atexit.register(shutil.rmtree, folder)
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            (folder / f"{name}.py").touch()
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def python_page() -> str:
    """Return the reference of the verbs and classes."""
    lines = [
        "# Python",
        "",
        "Every verb is also a method of diffusers' pipelines after `import dit_accel`.",
        "",
    ]
    lines += ["## Verbs", "", *(f"::: dit_accel.{verb}" for verb in VERBS)]
    lines += ["", "## The bundled model", "", "::: dit_accel.generation.tiny_world.load_tiny_world"]
    for title, names in CLASSES.items():
        lines += ["", f"## {title}", "", *(f"::: {name}" for name in names)]
    return "\n".join(lines) + "\n"


def methods_page() -> str:
    """Return the reference of the methods."""
    lines = [
        "# Methods and knobs",
        "",
        "A method is a frozen dataclass. Its fields are its knobs.",
        "",
    ]
    names = re.findall(
        r"^from \.methods import (\w+) as", (ROOT / "dit_accel/__init__.pyi").read_text(), re.M
    )
    lines += [
        f"::: dit_accel.methods.{name}" for name in names if name not in ("METHODS", "Method")
    ]
    return "\n".join(lines) + "\n"


def kernels_page() -> str:
    """Return the reference of the operations on tensors."""
    lines = [
        "# Kernels",
        "",
        "These operations know tensors alone. `dit_accel_kernels` holds them.",
        "",
    ]
    return (
        "\n".join(
            [*lines, "::: dit_accel_kernels.sparse_attention", "::: dit_accel_kernels.contracts"]
        )
        + "\n"
    )
