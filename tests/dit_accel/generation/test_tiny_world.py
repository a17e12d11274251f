"""The bundled model: reachable by name, and a prompt that it cannot read is told."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import dit_accel
from dit_accel import cli
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel_assets import prompt_sets, tiny_world_path

CAPTION = "a red circle moving left on a black background"
SIZE = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}


@pytest.mark.parametrize("model", ["tiny-world", str(tiny_world_path())])
def test_a_prompt_that_is_no_caption_gives_a_warning(model: str) -> None:
    with pytest.warns(UserWarning, match="cannot read 'a dragon over a castle'.*COLOUR SHAPE"):
        warn_unreadable(["a dragon over a castle"], model)
    with pytest.warns(UserWarning, match="cannot read 2 of 3 prompts, such as 'a red circle'"):
        warn_unreadable(["a red circle", CAPTION, "a fox"], model)


def test_captions_and_other_models_give_none() -> None:
    lines = prompt_sets()["tiny-world-held-out"].read_text().splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unreadable([line for line in lines if not line.startswith("#")], "tiny-world")
        warn_unreadable(["a dragon over a castle"], "owner/model")


def test_the_loaded_pipeline_warns_at_its_call() -> None:
    pipe = dit_accel.load_tiny_world()
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "WanPipeline"
    with pytest.warns(UserWarning, match="cannot read 'a dragon'"):
        pipe("a dragon", **SIZE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="tiny-world")
        pipe([CAPTION], **SIZE)
    with pytest.raises(ValueError, match="divisible by 16"):
        pipe(CAPTION, **{**SIZE, "height": 30})


def test_render_warns_before_it_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--dry-run", "-o", str(tmp_path / "out")]
    assert cli.main(["render", "a dragon", *out]) == 0
    assert capsys.readouterr().err.count("warning: tiny-world cannot read 'a dragon'") == 1
    assert cli.main(["render", CAPTION, *out]) == 0
    assert "cannot read" not in capsys.readouterr().err
