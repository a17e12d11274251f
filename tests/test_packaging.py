"""The wheel: its content, and that it works installed, with all extras and with none."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.documents import links

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = ("kernels", "pipelines", "eval", "assets")
LIBRARIES = Path(sysconfig.get_paths()["purelib"])
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
PLAIN_PROBE = """
import importlib.util
extras = ("imageio", "lpips", "matplotlib", "optuna", "scipy", "sklearn", "torchmetrics", "torchvision")
assert not [name for name in extras if importlib.util.find_spec(name)]
from diffusers import WanPipeline
import dit_accel
from dit_accel_assets import tiny_world_path
pipe = WanPipeline.from_pretrained(tiny_world_path())
pipe.enable_sparse_attention("svg-ear")
pipe("a red circle", height=32, width=32, num_frames=5, num_inference_steps=1, output_type="np")
print(pipe.attention_report())
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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel installed alone."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return target


def run_installed(
    arguments: list[str], *folders: Path, cwd: Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of some folders alone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    # -S ignores .pth files, so an editable install of this checkout is not found.
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, check=check, capture_output=True, text=True
    )


def tracked_files() -> set[str]:
    """Return the files of the packages that git tracks, by their name in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "dit_accel", *(f"{r}/dit_accel_{r}" for r in SOURCE_ROOTS)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return {f.split("/", 1)[1] if f.split("/")[0] in SOURCE_ROOTS else f for f in listed}


def find_distributions(requirements: list[str]) -> dict[str, Distribution]:
    """Return the installed distributions that requirements need, directly or indirectly, without extras."""
    needed: dict[str, Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        marker = requirement.marker
        if name in needed or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        try:
            needed[name] = distribution(name)
        except PackageNotFoundError:
            continue
        waiting += needed[name].requires or []
        # An extra that is asked for by name, such as cuda-toolkit[cublas], has no marker of its own here.
        for extra in requirement.extras:
            waiting += [
                str(dependency).split(";")[0]
                for dependency in map(Requirement, needed[name].requires or [])
                if dependency.marker is not None and dependency.marker.evaluate({"extra": extra})
            ]
    return needed


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


def test_wheel_names_its_extras_and_its_project(wheel: Path) -> None:
    lines = read_metadata(wheel).splitlines()
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if "Provides-Extra" in line}
    assert extras >= {"all", "comfyui", "dev", "eval", "video"}
    assert "Author: The dit_accel authors" in lines
    urls = {line.split(",")[0] for line in lines if line.startswith("Project-URL: ")}
    assert urls == {f"Project-URL: {n}" for n in ("Homepage", "Repository", "Issues", "Changelog")}


def read_metadata(wheel: Path) -> str:
    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return archive.read(name).decode()


def test_readme_of_the_wheel_needs_no_repository(wheel: Path) -> None:
    """Its links and pictures are those of the README, and lead to files of this version."""
    _, readme = read_metadata(wheel).split("\n\n", 1)
    assert "<!--" not in readme
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    version = distribution("dit_accel").version
    home = "https://github.com/dit-accel/dit_accel/blob"
    pictures = "https://raw.githubusercontent.com/dit-accel/dit_accel"
    prefixes = (f"{home}/v{version}/", f"{pictures}/v{version}/")
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []
    ours = {t for t in targets if t.startswith((home, pictures))}
    paths = {t.removeprefix(prefixes[0]).removeprefix(prefixes[1]) for t in ours}
    assert paths == set(links(ROOT / "README.md"))
    assert {t.startswith(pictures) for t in ours if t.endswith(".png")} == {True}


def test_packages_pass_twine(wheel: Path) -> None:
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_installed_wheel_works_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    """Our packages come from the wheel alone, everything else from this environment."""
    probe = run_installed(["-c", PROBE], installed, LIBRARIES, cwd=tmp_path)
    imported = json.loads(probe.stdout.splitlines()[-1])
    assert all(f.startswith(str(installed)) for f in imported["files"])
    assert imported["pipeline"] == "WanPipeline"
    assert imported["dtype"] == "torch.float32"
    assert imported["hub_kernels"]
    assert not imported["eval"]
    assert (installed / "bin" / "dit-accel").exists()


def test_plain_install_accelerates_a_pipeline_and_renders_an_image(
    installed: Path, tmp_path: Path
) -> None:
    """Only the packages that the wheel requires without extras are there."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    wheel = next(iter(Distribution.discover(name="dit_accel", path=[str(installed)])))
    for package in find_distributions(list(wheel.requires or [])).values():
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (libraries / top).exists():
                (libraries / top).symlink_to(LIBRARIES / top)
    probe = run_installed(["-c", PLAIN_PROBE], installed, libraries, cwd=tmp_path)
    assert "svg-ear on wan" in probe.stdout
    render = ["-m", "dit_accel", "render", "a red circle", "--steps", "1", "--quiet"]
    image = [*render, "--height", "32", "--width", "32", "--frames", "1", "-o", "out.png"]
    run_installed(image, installed, libraries, cwd=tmp_path)
    assert (tmp_path / "out.png").exists()
    video = run_installed(
        [*render, "-o", "out.mp4"], installed, libraries, cwd=tmp_path, check=False
    )
    assert video.returncode == 1
    assert "pip install 'dit_accel[video]'" in video.stderr
    compared = run_installed([*image, "--compare"], installed, libraries, cwd=tmp_path, check=False)
    assert compared.returncode == 1
    assert "pip install 'dit_accel[eval]'" in compared.stderr


def test_hub_kernels_are_not_shadowed_by_the_checkout() -> None:
    """A ``kernels`` folder with an ``__init__`` would break diffusers' hub kernels."""
    pytest.importorskip("kernels")
    command = [sys.executable, "-c", "from kernels import get_kernel"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
