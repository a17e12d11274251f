"""The wheel: built, installed beside the environment's packages, imported from elsewhere."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = ("kernels", "pipelines", "eval", "assets")
PROBE = """
import importlib.util, json, sys
import dit_accel, dit_accel_kernels, dit_accel_pipelines, dit_accel_eval, dit_accel_assets
from dit_accel.generation.loading import load_pipeline, read_card
import kernels
pipe = load_pipeline(read_card("tiny-world"))
rooms = (dit_accel, dit_accel_kernels, dit_accel_pipelines, dit_accel_eval, dit_accel_assets)
print(json.dumps({
    "files": [room.__file__ for room in rooms],
    "pipeline": type(pipe).__name__,
    "dtype": str(pipe.transformer.dtype),
    "hub_kernels": hasattr(kernels, "get_kernel"),
    "eval": importlib.util.find_spec("eval") is not None,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "-o",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def tracked_files() -> set[str]:
    """Files of the packages that git tracks, by their name in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "dit_accel", *(f"{r}/dit_accel_{r}" for r in SOURCE_ROOTS)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return {f.split("/", 1)[1] if f.split("/")[0] in SOURCE_ROOTS else f for f in listed}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_wheel_holds_exactly_what_git_tracks(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == tracked_files()
    weights = [n for n in names if n.startswith("dit_accel_assets/tiny_world/")]
    assert {n.split("/")[2] for n in weights if n.endswith(".safetensors")} == {
        "transformer",
        "text_encoder",
        "vae",
    }


def test_wheel_has_no_top_level_kernels_or_eval(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {
        "dit_accel",
        "dit_accel_kernels",
        "dit_accel_pipelines",
        "dit_accel_eval",
        "dit_accel_assets",
        next(t for t in tops if t.endswith(".dist-info")),
    }


def test_installed_wheel_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Our packages come from the wheel alone, everything else from this environment."""
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    libraries = sysconfig.get_paths()["purelib"]
    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{libraries}"}
    # -S leaves out .pth files, so an editable install of this checkout cannot help.
    probe = subprocess.run(
        [sys.executable, "-S", "-c", PROBE],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(probe.stdout.splitlines()[-1])
    assert all(f.startswith(str(target)) for f in found["files"])
    assert found["pipeline"] == "WanPipeline"
    assert found["dtype"] == "torch.float32"
    assert found["hub_kernels"]
    assert not found["eval"]
    script = target / "bin" / "dit-accel"
    assert script.exists()


def test_hub_kernels_are_not_shadowed_by_the_checkout() -> None:
    """A bare ``kernels`` folder with an ``__init__`` would break diffusers' hub kernels."""
    pytest.importorskip("kernels")
    command = [sys.executable, "-c", "from kernels import get_kernel"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
