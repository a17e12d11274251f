"""The arrows between the rooms: kernels, pipelines, assets <- dit_accel <- eval."""

import ast
import sys
from pathlib import Path

import pytest

from dit_accel import extensions

ROOT = Path(__file__).parent.parent
ROOMS = {
    "dit_accel_kernels": (ROOT / "kernels/dit_accel_kernels", set()),
    "dit_accel_pipelines": (ROOT / "pipelines/dit_accel_pipelines", set()),
    "dit_accel_assets": (ROOT / "assets/dit_accel_assets", set()),
    "dit_accel": (
        ROOT / "dit_accel",
        {"dit_accel_kernels", "dit_accel_pipelines", "dit_accel_assets"},
    ),
    "dit_accel_eval": (
        ROOT / "eval/dit_accel_eval",
        {"dit_accel", "dit_accel_kernels", "dit_accel_pipelines", "dit_accel_assets"},
    ),
}


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, also of those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


def upward_strings(path: Path, room: str) -> list[str]:
    allowed = {room, *ROOMS[room][1]}
    return [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.split(".")[0] in set(ROOMS) - allowed
        and ":" in node.value
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room: str) -> None:
    folder, below = ROOMS[room]
    files = list(folder.rglob("*.py"))
    assert files
    for path in files:
        wrong = (imported(path) & set(ROOMS)) - below - {room}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
        assert not upward_strings(path, room), f"{path.relative_to(ROOT)} reaches upward by name"


def test_kernels_know_only_torch_and_pipelines_no_method() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        allowed = {"torch", "dit_accel_kernels", *sys.stdlib_module_names}
        if path.parent.name == "gpu":
            allowed.add("triton")
        if path.parent.name == "cpu":
            allowed.add("platformdirs")  # where the compiled kernel is kept
        foreign = imported(path) - allowed
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"
    for path in (ROOT / "pipelines").rglob("*.py"):
        assert "diffusers" not in imported(path)


def test_only_the_hooks_touch_processors() -> None:
    for path in (ROOT / "dit_accel").rglob("*.py"):
        if path.parent.name != "hooks":
            assert "dispatch_attention_fn" not in path.read_text(), path


def test_registered_commands_and_extensions_load() -> None:
    assert extensions.command_names() == ["bench", "compare", "eval", "heads", "tune"]
    for name in extensions.command_names():
        assert extensions.load_command(name).name == name
    assert callable(extensions.load_extension("comparison").quality_metrics)


def test_no_package_in_the_source_roots() -> None:
    for root in ("kernels", "pipelines", "eval", "assets", "tests"):
        assert not (ROOT / root / "__init__.py").exists(), f"{root}/__init__.py"


FLOORS = (
    ("errors", "verbs"),
    ("extensions",),
    ("io",),
    ("core",),
    ("hooks", "methods"),
    ("guidance",),
    ("runtime",),
    ("targets",),
    ("api", "acceleration"),
    ("generation",),
    ("doctor", "comfyui", "ui"),
    ("cli",),
)
"""The rooms of dit_accel from the lowest up. A room imports itself and rooms of lower floors."""


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms of dit_accel that a file imports, also inside functions and for types."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dit_accel":
            rooms |= {alias.name for alias in node.names if not alias.name.startswith("_")}
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {n.split(".")[1] for n in names if n and n.startswith("dit_accel.")}
    return rooms


def test_rooms_of_dit_accel_import_lower_floors_only() -> None:
    level = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    for path in (ROOT / "dit_accel").rglob("*.py"):
        room = path.relative_to(ROOT / "dit_accel").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        for other in rooms_imported(path) - {room}:
            assert level[other] < level[room], f"{path.relative_to(ROOT)} imports {other}"


def test_only_the_command_lines_import_cli() -> None:
    for root in ("dit_accel", "eval", "kernels", "pipelines", "assets"):
        for path in (ROOT / root).rglob("*.py"):
            if "cli" not in path.parts and path.name != "__main__.py":
                imported_rooms = rooms_imported(path)
                assert "cli" not in imported_rooms, f"{path.relative_to(ROOT)} imports cli"
