"""Recipes in files pass the same checks as the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from dit_accel import cli
from dit_accel.generation import batch

RECIPE = {"prompt": "a red circle", "height": 64, "width": 64, "frames": 1, "steps": 1}


@pytest.fixture(autouse=True)
def _no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(batch, "load_pipeline", refuse)


def write_recipe(folder: Path, name: str, text: str) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(name, text)
    path = folder / "a.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"guidance_scale": math.nan}, "guidance_scale: a number must be finite"),
        ({"guidance_scale": math.inf}, "guidance_scale: a number must be finite"),
        ({"ulysses": "ring=2"}, "settings ulysses: Input should be a valid integer"),
        ({"ulysses": -3}, "ulysses must be at least 1, got -3"),
        ({"ulysses": 10**9}, "ulysses must be at most 1024"),
        ({"context_parallel": "ulysses=2"}, "unknown settings 'context_parallel'"),
        ({"prompt": None}, "settings prompt: Input should be a valid string, got None"),
        ({"negative_prompt": "blue"}, "ignores a negative prompt with a guidance_scale of 1"),
        ({"knobs": [1]}, "settings knobs: Input should be a valid dictionary"),
        ({"loras": "x"}, "settings loras: "),
        ({"heads": {"x": 1}}, "not a head set"),
        ({"seed": -1}, "seed must be in"),
        ({"image": "/none.png"}, "cannot read image /none.png"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_work_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"dit_accel": {**RECIPE, **changes}}
    path = write_recipe(tmp_path, "dit_accel", json.dumps(recipe))
    assert cli.main(["replay", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("name", ["dit_accel", "prompt"])
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "5", '{"dit_accel": [1]}', "{}"])
def test_a_file_with_another_text_is_refused(
    tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, name, text)
    assert cli.main(["replay", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_changed_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"dit_accel": {**RECIPE, "ingredients": {"weights": "of another time"}}}
    path = write_recipe(tmp_path, "dit_accel", json.dumps(recipe))
    assert cli.main(["replay", str(path)]) == 1
    assert "warning: the model, a LoRA or the image has changed since" in capsys.readouterr().err
