"""Installing the nodes into a folder of ComfyUI."""

import inspect
import json
import runpy
from pathlib import Path

from support.comfyui_workflows import load_workflow

from dit_accel import cli


def test_install_and_uninstall(tmp_path: Path, capsys) -> None:
    assert cli.main(["comfyui", "install", str(tmp_path)]) == 2
    assert "has no custom_nodes: give ComfyUI's folder" in capsys.readouterr().err
    (tmp_path / "custom_nodes").mkdir()
    for _ in range(2):
        assert cli.main(["comfyui", "install", str(tmp_path)]) == 0
    pack = tmp_path / "custom_nodes/dit_accel"
    names = runpy.run_path(str(pack / "__init__.py"))
    assert (Path(names["WEB_DIRECTORY"]) / "docs/DitAccelSparse.md").is_file()
    assert inspect.iscoroutinefunction(names["comfy_entrypoint"])
    installed = pack / "example_workflows/tiny_world_render.json"
    assert json.loads(installed.read_text()) == load_workflow("tiny_world_render")
    (pack / "other.py").write_text("")
    for verb in ("install", "uninstall"):
        assert cli.main(["comfyui", verb, str(tmp_path)]) == 2
        assert "is not ours" in capsys.readouterr().err
    (pack / "other.py").unlink()
    other = pack / "example_workflows/other.json"
    other.write_text("{}")
    assert cli.main(["comfyui", "uninstall", str(tmp_path)]) == 2
    other.unlink()
    assert cli.main(["comfyui", "uninstall", str(tmp_path)]) == 0
    assert not pack.exists()
    assert cli.main(["comfyui", "uninstall", str(tmp_path)]) == 0
    assert "nothing of dit-accel in" in capsys.readouterr().out
