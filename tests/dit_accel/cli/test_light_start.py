"""Short commands and bad arguments answer without importing torch, and deferred modules load when they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# None of these may be imported by a command that renders nothing.
HEAVY = ("torch", "numpy", "diffusers", "transformers", "accelerate", "scipy", "imageio")

PACKAGE = """
import heavy.part
value = "loaded"
"""
SUBMODULE = """
import builtins
builtins.runs = getattr(builtins, "runs", 0) + 1
"""
PREPARE = """
import builtins, sys
from dit_accel.cli.deferred import defer
defer("heavy")
import heavy
assert not hasattr(builtins, "runs"), "the import was not deferred"
deferred = heavy
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which importing a heavy package fails."""
    folder = tmp_path_factory.mktemp("broken")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--help", 0, "render"),
        ("--version", 0, "version"),
        ("render --help", 0, "--method"),
        ("replay --help", 0, "FILE"),
        ("comfyui --help", 0, "install"),
        ("doctor --help", 0, "--json"),
        ("ui --help", 0, "--port"),
        ("ui --model ./nonsense", 2, "no model"),
        ("methods", 0, "svg-ear: "),
        ("methods svg-ear", 0, "density: float"),
        ("methods schedule --json", 0, "schedule.dense_steps"),
        ("models", 0, "WanTransformer3DModel"),
        ("models --json", 0, "WanTransformer3DModel"),
        ("nonsense", 2, "No such command"),
        ("render", 2, "no prompt"),
        ("render x --nonsense", 2, "No such option"),
        ("render x --method nonsense", 2, "unknown method"),
        ("render x --set nonsense=1", 2, "unknown svg-ear knob"),
        ("render x --set density=5", 2, "density must be in [0, 1]"),
        ("render x --profile /nonsense.yaml", 2, "cannot read profile"),
        ("render x --steps 0", 2, "steps must be at least 1"),
        ("render x --height 100", 2, "height 100 is not divisible by 16"),
        ("render x --heads nonsense", 2, "heads are written like"),
        ("render x --softness 0.5", 2, "softness applies only to perturbed guidance"),
        ("render x --pag-scale -1", 2, "scale must be 0 or more"),
        ("render x --image /nonsense.png", 2, "cannot read image"),
        ("render x --lora /nonsense.safetensors", 2, "no LoRA"),
        ("render x --device nonsense", 2, "unknown device"),
        ("render x --offload model", 2, "needs a CUDA device"),
        ("render x --model ./nonsense", 2, "no model"),
        ("render x -o /proc/nonsense/x.mp4", 2, "cannot write into"),
        ("render x -o clip.gif", 2, "no .mp4 or .png ending"),
        ("render x --prompts /nonsense.txt", 2, "cannot read prompts"),
        ("render x --context-parallel ring=2", 2, "use ulysses=N"),
        ("replay /nonsense.mp4", 2, "cannot read file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_answers_without_importing_torch(
    arguments: str, code: int, message: str, without_torch: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "dit_accel", *arguments.split()]
    done = subprocess.run(command, env=without_torch, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "assert heavy.value == 'loaded'",
        "import heavy.part as part; assert heavy.part is part",
        "from heavy import value; assert value == 'loaded'",
        "from heavy.part import builtins as same; assert same is builtins",
    ],
    ids=["attribute", "submodule", "from-import", "from-submodule"],
)
def test_a_deferred_module_loads_once_when_it_is_used(use: str, tmp_path: Path) -> None:
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy/__init__.py").write_text(PACKAGE)
    (tmp_path / "heavy/part.py").write_text(SUBMODULE)
    checks = """
assert builtins.runs == 1, "a submodule ran twice"
assert heavy is sys.modules["heavy"] and heavy is not None, "the stand-in was not replaced"
assert deferred.value == "loaded"
assert sys.modules["heavy.part"] is heavy.part
assert heavy.part.__spec__.name == "heavy.part" and heavy.part.__spec__.origin
assert not any("Submodule" in type(finder).__name__ for finder in sys.meta_path)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    script = PREPARE + use + checks
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_submodule_of_a_deferred_module_is_an_import_error(tmp_path: Path) -> None:
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy/__init__.py").write_text(PACKAGE)
    (tmp_path / "heavy/part.py").write_text(SUBMODULE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", f"{PREPARE}import heavy.nonsense"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "ModuleNotFoundError: No module named 'heavy.nonsense'" in done.stderr


def test_loaded_and_missing_modules_are_left_alone() -> None:
    script = """
import json, sys
from dit_accel.cli.deferred import defer
defer("json")
assert sys.modules["json"] is json
defer("no_such_module")
assert "no_such_module" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torch_loads_with_a_submodule_first() -> None:
    script = """
from dit_accel.cli.deferred import defer
defer("torch")
import torch.distributed as distributed
import torch
assert torch.distributed is distributed and torch.nn.Linear(2, 2)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
