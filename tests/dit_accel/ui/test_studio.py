"""The page in the browser: what it offers, what it renders, and that it stays on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dit_accel import cli, extensions
from dit_accel.core.progress import Progress
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings, attention_settings, build_profile
from dit_accel.io.media import read_metadata
from dit_accel.methods import METHODS
from dit_accel.runtime.presets import PRESETS
from dit_accel.runtime.recipes import list_recipes
from dit_accel.ui.studio import Studio

SMALL = {"height": 32, "width": 32, "frames": 5, "steps": 1}
VALUES = {
    "prompt": "a red circle",
    "negative_prompt": None,
    **SMALL,
    "guidance_scale": 1.0,
    "seed": 3,
}
EVERYWHERE = {"schedule.dense_steps": "0", "schedule.min_tokens": "0"}


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(RenderSettings("", **SMALL), tmp_path)


@pytest.fixture
def loaded(studio: Studio) -> Studio:
    studio.load()
    return studio


def test_it_offers_methods_and_the_recipes_of_the_family(studio: Studio) -> None:
    choices = studio.choices()
    assert studio.base.method == "svg-ear"
    recipes = {recipe.name for recipe in list_recipes(family="wan")}
    assert set(choices) == {*PRESETS, *METHODS, *recipes} - {"dense"}
    for choice in choices:
        assert build_profile(studio.settings(choice, studio.knobs(choice), VALUES))


def test_knobs_that_are_not_changed_are_left_to_the_choice(studio: Studio) -> None:
    knobs = studio.knobs("svg-ear")
    assert (knobs["density"], knobs["query_clusters"]) == ("0.15", "none")
    assert studio.settings("svg-ear", knobs, VALUES).knobs == {}
    changed = studio.settings("svg-ear", {**knobs, "density": " 0.3", **EVERYWHERE}, VALUES)
    assert changed.knobs == {"density": " 0.3", **EVERYWHERE}
    recipe = list_recipes(family="wan")[0].name
    chosen = studio.settings(recipe, studio.knobs(recipe), VALUES)
    assert build_profile(chosen) == build_profile(
        RenderSettings("", **attention_settings(recipe, {}, {}))
    )


def test_a_render_writes_both_clips_and_holds_its_settings(loaded: Studio) -> None:
    knobs = {**loaded.knobs("svg-ear"), **EVERYWHERE}
    settings = loaded.settings("svg-ear", knobs, VALUES)
    outcome = loaded.render(settings, Progress())
    assert outcome.clip.parent == outcome.both.parent == loaded.folder
    metadata = read_metadata(outcome.clip)
    assert (metadata["seed"], metadata["knobs"]) == (3, EVERYWHERE)
    assert "PSNR" in outcome.figures
    assert "sparse calls" in outcome.report
    assert [note for note in outcome.notes if "cannot read 'a red circle'" in note]


def test_wrong_values_are_refused_before_a_render(studio: Studio) -> None:
    with pytest.raises(InvalidSettings, match="2 or more frames here, got 1"):
        studio.settings("svg-ear", {}, {**VALUES, "frames": 1})
    settings = studio.settings("svg-ear", {"nonsense": "1"}, VALUES)
    with pytest.raises(InvalidSettings, match="unknown svg-ear knob"):
        studio.render(settings, Progress())
    with pytest.raises(InvalidSettings, match="no model 'nonsense'"):
        Studio(RenderSettings("", model="nonsense"), studio.folder)


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extensions, "_is_installed", lambda name: name != "gradio")
    assert cli.main(["ui"]) == 1
    assert "needs gradio: pip install 'dit_accel[ui]'" in capsys.readouterr().err


def test_the_page_renders_and_tells_errors(loaded: Studio) -> None:
    gradio = pytest.importorskip("gradio")
    from dit_accel.ui.page import VALUES as NAMES
    from dit_accel.ui.page import build_page, make_render

    page = build_page(loaded)
    assert not page.analytics_enabled
    assert page.get_api_info()["named_endpoints"] == {}
    assert {"video", "downloadbutton", "dataframe", "code", "html"} <= {
        block.get_block_name() for block in page.blocks.values()
    }
    render, inputs = make_render(loaded), [VALUES[name] for name in NAMES]
    rows = [list(row) for row in {**loaded.knobs("svg-ear"), **EVERYWHERE}.items()]
    both, file, figures, report = render("svg-ear", rows, *inputs)
    assert (Path(both).exists(), Path(file.value["path"]).exists()) == (True, True)
    assert "PSNR" in figures
    assert report.startswith("<table>")
    with pytest.raises(gradio.Error, match="unknown svg-ear knob"):
        render("svg-ear", [["nonsense", "1"]], *inputs)


def test_it_listens_on_this_machine_alone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio")
    from dit_accel.ui import page

    given: dict[str, Any] = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda _, **values: given.update(values))
    monkeypatch.setattr(Studio, "load", lambda _: None)
    assert cli.main(["ui", "--no-open", "--quiet"]) == 0
    assert (given["server_name"], given["share"], given["run_history"]) == (
        "127.0.0.1",
        False,
        False,
    )
    assert page.FONTS["font"][0] == "system-ui"
