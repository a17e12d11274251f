"""Widgets of knobs, profiles by name, and help pages, all from the methods' own docs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.comfyui_workflows import load_workflow, to_prompt

from dit_accel import SVG2, SVGEar
from dit_accel.comfyui.help_pages import PAGES, format_page
from dit_accel.comfyui.knob_inputs import knob_inputs
from dit_accel.comfyui.registry import NODES
from dit_accel.comfyui.replay import read_workflow_settings
from dit_accel.comfyui.settings_nodes import FILE, choose_profile, make_method_attention
from dit_accel.core.schedule import Rule, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.methods import METHODS
from dit_accel.runtime.presets import PRESETS
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.recipes import list_recipes

RUN: dict[str, Any] = {
    "dense_steps": 0.2,
    "precision": "full",
    "dense_precision": "full",
    "guard": "off",
}


@pytest.mark.parametrize("name", METHODS)
def test_untouched_widgets_make_the_method_itself(name: str) -> None:
    inputs = knob_inputs(name)
    assert [knob.name for knob in inputs] == [f.name for f in dataclasses.fields(METHODS[name])]
    assert all(knob.tooltip for knob in inputs)
    widgets = {"method": name, **{knob.name: knob.default for knob in inputs}}
    (profile,) = make_method_attention(widgets, more="", **RUN)
    assert profile.method == METHODS[name]()


def test_changed_widgets_and_texts_become_knobs() -> None:
    widgets = {"method": "svg2", "top_p": 0.8, "kmeans_iterations": "4,2", "key_clusters": "64"}
    widgets |= {"dense_kmeans": True, "init": "random"}
    (profile,) = make_method_attention(widgets, more="schedule.min_tokens=0", **RUN)
    assert profile.method == SVG2(
        top_p=0.8, kmeans_iterations=(4, 2), key_clusters=64, dense_kmeans=True, init="random"
    )
    assert profile.schedule == Schedule(dense_steps=0.2, min_tokens=0)
    with pytest.raises(InvalidSettings, match="top_p must be in"):
        make_method_attention({"method": "svg2", "top_p": 2.0}, more="", **RUN)


def test_workflow_with_widgets_of_knobs_can_be_replayed() -> None:
    nodes = to_prompt(load_workflow("tiny_world_render"))
    knobs = {"method": "svg-ear", "method.density": 0.25, "method.refresh": 2}
    nodes["1"] = {"class_type": "DitAccelMethod", "inputs": {**knobs, **RUN, "more": ""}}
    settings = read_workflow_settings(nodes)
    assert (settings["method"], settings["knobs"]["density"]) == ("svg-ear", 0.25)
    nodes["1"] = {
        "class_type": "DitAccelProfile",
        "inputs": {"profile": "svg2:wan-2.1-t2v-720p", "file": ""},
    }
    assert read_workflow_settings(nodes)["method"] == "svg2"


def test_profiles_by_name_and_from_a_file(tmp_path: Path) -> None:
    profile, content = choose_profile("balanced", "")
    assert isinstance(profile.method, SVGEar)
    assert "A MODEL takes no cache of a profile: put EasyCache" in content
    kept = Profile(SVG2(top_p=0.7), Schedule(rules=(Rule(layers="0", dense=True),)))
    kept.save(tmp_path / "p.yaml")
    profile, content = choose_profile(FILE, str(tmp_path / "p.yaml"))
    assert profile.method == kept.method
    assert "top_p: 0.7" in content
    assert "MODEL" not in content
    (node,) = [node for node in NODES if node.id == "DitAccelProfile"]
    options = node.inputs[0].options
    assert set(options) == {*PRESETS, *(recipe.name for recipe in list_recipes()), FILE}
    for name in options:
        if name != FILE:
            assert isinstance(choose_profile(name, "")[0], Profile)


def test_help_pages_are_those_of_the_nodes() -> None:
    """``python -m dit_accel.comfyui.help_pages`` writes them again."""
    assert {path.name for path in PAGES.iterdir()} == {f"{node.id}.md" for node in NODES}
    for node in NODES:
        page = (PAGES / f"{node.id}.md").read_text()
        assert page == format_page(node)
        assert all(f"**{declared.name}**" in page for declared in node.inputs)
