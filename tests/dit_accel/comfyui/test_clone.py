"""A clone of the repository in ``custom_nodes``, and the nodes without diffusers."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dit_accel.comfyui.install import install

ROOT = Path(__file__).parents[3]

WITHOUT_DIFFUSERS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"no {{name}} here")
sys.meta_path.insert(0, Refuse())
"""

LOAD_PACK = """
import asyncio, importlib.util
from pathlib import Path
file = Path({root!r}, "__init__.py")
# ComfyUI gives a pack the name of its folder's path.
spec = importlib.util.spec_from_file_location(str(file.parent).replace(".", "_x_"), file)
pack = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = pack
spec.loader.exec_module(pack)
assert asyncio.iscoroutinefunction(pack.comfy_entrypoint)
"""
LOAD_CLONE = (
    LOAD_PACK
    + """
import dit_accel, dit_accel_kernels, dit_accel_pipelines
for package in (dit_accel, dit_accel_kernels, dit_accel_pipelines):
    assert Path(package.__file__).is_relative_to(file.resolve().parent), package.__file__
from dit_accel.comfyui.registry import NODES
print([node.id for node in NODES])
"""
)

NATIVE = [
    "DitAccelSparse",
    "DitAccelMethod",
    "DitAccelProfile",
    "DitAccelGuidance",
    "DitAccelHeadSet",
    "DitAccelNativeAttention",
    "DitAccelNativeGuidance",
    "DitAccelReport",
    "DitAccelCompareImages",
]


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that finds installed packages only."""
    command = [sys.executable, "-P", "-c", code]
    environment = {"PATH": "", "HOME": str(folder)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_clone_loads_without_diffusers(tmp_path: Path) -> None:
    clone = tmp_path / "custom_nodes" / "dit_accel"
    clone.parent.mkdir()
    clone.symlink_to(ROOT)
    blocked = ("diffusers", "transformers", "accelerate", "huggingface_hub", "pydantic", "ftfy")
    code = WITHOUT_DIFFUSERS.format(blocked=blocked) + LOAD_CLONE.format(root=str(clone))
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(NATIVE)
    assert "the nodes for diffusers pipelines are missing" in done.stderr
    assert "no diffusers here" in done.stderr


@pytest.mark.parametrize("pack", ["clone", "installed"])
@pytest.mark.parametrize("first", ["pack", "package"])
def test_pack_does_not_hide_the_package(tmp_path: Path, pack: str, first: str) -> None:
    """Other packs put custom_nodes on the path, where the folder has the name of the package."""
    nodes = tmp_path / "custom_nodes"
    nodes.mkdir()
    path = [str(nodes)]
    if pack == "clone":
        (nodes / "dit_accel").symlink_to(ROOT)
    else:
        install(tmp_path)
        path += [str(ROOT / name) for name in ("", "kernels", "pipelines", "assets", "eval")]
    steps = [LOAD_PACK.format(root=str(nodes / "dit_accel")), "import dit_accel.comfyui.install\n"]
    code = "".join(steps if first == "pack" else reversed(steps))
    code += "import dit_accel; print(dit_accel.__file__)"
    done = run_python(f"import sys\nsys.path[:0] = {path}\n{code}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == ROOT / "dit_accel/__init__.py"


def test_requirements_of_a_clone_leave_torch_and_transformers_alone() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = {re.split("[<>=]", line)[0] for line in lines if line and line[0] != "#"}
    assert names
    assert not names & {"torch", "torchvision", "transformers", "diffusers", "accelerate"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    everywhere = {*project["dependencies"]}
    assert {line for line in lines if line and line[0] != "#"} <= everywhere
