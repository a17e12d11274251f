"""The nodes without ComfyUI: their contract, and runs on a tiny pipeline."""

import dataclasses
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dit_accel import SVG2, cli
from dit_accel.comfyui import NODE_CLASS_MAPPINGS, NODES, v1
from dit_accel.comfyui.pipeline_nodes import (
    LoadedPipeline,
    compare,
    guidance,
    head_set,
    load,
    render,
    sparse,
)
from dit_accel.comfyui.replay import settings_of
from dit_accel.comfyui.workflows import RENDER, as_prompt
from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import LoadOptions
from dit_accel.guidance import ModelShape, find_heads
from dit_accel.runtime.active_sessions import session_of
from dit_accel.runtime.profile import Profile
from dit_accel_pipelines import find_family

SIZE = {"width": 64, "height": 64, "frames": 9, "steps": 2, "guidance_scale": 4.0, "seed": 1}


@pytest.fixture
def loaded(wan) -> LoadedPipeline:
    return LoadedPipeline(wan, "tiny-world", LoadOptions())


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.id)
def test_a_declaration_fits_its_function(node) -> None:
    parameters = inspect.signature(node.run).parameters
    assert {given.name for given in node.inputs} == set(parameters)
    assert set(node.files) <= set(parameters)
    for given in node.inputs:
        optional = parameters[given.name].default is not inspect.Parameter.empty
        assert given.optional == optional
        assert given.tooltip.endswith(".")
        if given.kind == "combo":
            assert given.default in given.options
        if given.kind in ("int", "float"):
            assert given.low <= given.default <= given.high
    assert node.id.startswith("DitAccel")
    assert node.category
    assert node.description.endswith(".")


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.id)
def test_the_first_interface_says_the_same(node) -> None:
    kind = NODE_CLASS_MAPPINGS.get(node.id) or v1.node_class(node)
    told = kind.INPUT_TYPES()
    assert {*told["required"], *told["optional"]} == {given.name for given in node.inputs}
    assert hasattr(kind, "IS_CHANGED") == bool(node.files)
    assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(node.outputs)
    assert node.category == kind.CATEGORY
    assert hasattr(kind(), kind.FUNCTION)


def test_ids_never_change() -> None:
    assert [node.id for node in NODES] == [
        "DitAccelLoad",
        "DitAccelSparse",
        "DitAccelGuidance",
        "DitAccelHeadSet",
        "DitAccelRender",
        "DitAccelCompare",
        "DitAccelNativeAttention",
        "DitAccelNativeGuidance",
    ]


def test_render_leaves_the_pipeline_as_it_was(loaded) -> None:
    knobs = "density=0.3\nschedule.min_tokens=0"
    (profile,) = sparse("svg-ear", knobs, 0.0, "full", "full", "off", "")
    (guided,) = guidance(2.0, "blocks.1:0", 0.5, 0.0, 1.0, 0.0)
    node = NODE_CLASS_MAPPINGS["DitAccelRender"]()
    given = {"pipeline": loaded, "prompt": "a red circle", "negative_prompt": "", **SIZE}
    frames, report = node.execute(attention=profile, guidance=guided, **given)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == torch.float32
    assert "svg-ear on wan" in report
    assert "guidance 2 in 2 forwards" in report
    assert session_of(loaded.pipe) is None


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    kind = NODE_CLASS_MAPPINGS["DitAccelSparse"]
    path = tmp_path / "p.yaml"
    assert kind.IS_CHANGED(profile=str(path)) == kind.IS_CHANGED(profile="") == [None]
    Profile().save(path)
    before = kind.IS_CHANGED(profile=str(path))
    os.utime(path, ns=(1, 1))
    assert kind.IS_CHANGED(profile=str(path)) != before


def test_progress_follows_the_steps_and_interrupt_leaves_no_patch(loaded, monkeypatch) -> None:
    seen: list[int] = []
    interrupted = False

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int) -> None:
            assert value <= total == self.total == 3
            seen.append(value)

    def throw() -> None:
        if interrupted and len(seen) > 5:
            raise InterruptedError("interrupted by its user")

    modules = {
        name: ModuleType(name) for name in ("comfy", "comfy.model_management", "comfy.utils")
    }
    modules["comfy"].model_management = modules["comfy.model_management"]
    modules["comfy"].utils = modules["comfy.utils"]
    modules["comfy.utils"].ProgressBar = ProgressBar
    modules["comfy.model_management"].throw_exception_if_processing_interrupted = throw
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    given = {**SIZE, "steps": 3, "guidance_scale": 1.0}
    before, _ = render(loaded, "a red circle", "", **given)
    assert seen == [0, 1, 2, 3]
    transformer = loaded.pipe.transformer
    processors = transformer.attn_processors
    interrupted = True
    with pytest.raises(InterruptedError):
        render(loaded, "a red circle", "", **given)
    assert session_of(loaded.pipe) is None
    assert all(now is processors[name] for name, now in transformer.attn_processors.items())
    assert not transformer._forward_pre_hooks
    interrupted = False
    after, _ = render(loaded, "a red circle", "", **given)
    assert torch.equal(after, before)


def test_a_workflow_gives_back_what_its_nodes_were_given(tmp_path: Path) -> None:
    nodes = as_prompt(RENDER)
    found = settings_of(nodes)
    assert (found["model"], found["seed"], found["guidance_scale"]) == ("tiny-world", 0, 1.0)
    assert (found["method"], found["knobs"]["schedule.min_tokens"]) == ("svg-ear", 0)
    guided = {"scale": 2.0, "heads": "blocks.3:1", "softness": 0.5, "start": 0.0, "end": 0.4}
    nodes["9"] = {"class_type": "DitAccelGuidance", "inputs": {**guided, "rescale": 0.0}}
    nodes["2"]["inputs"]["guidance"] = ["9", 0]
    heads = settings_of(nodes)["heads"]
    assert heads["heads"] == [["blocks", 3, [1]]]
    assert heads["settings"]["interval"] == (0.0, 0.4)
    nodes["8"] = {"class_type": "SomeText", "inputs": {}}
    nodes["2"]["inputs"]["prompt"] = ["8", 0]
    with pytest.raises(InvalidSettings, match="prompt of DitAccelRender comes from SomeText"):
        settings_of(nodes)
    with pytest.raises(InvalidSettings, match="has 0 renders of ours"):
        settings_of({"8": nodes["8"]})


def test_compare_gives_both_and_the_difference(loaded) -> None:
    (profile,) = sparse("svg2", "top_p=0.2;schedule.min_tokens=0", 0.0, "full", "full", "off", "")
    dense, other, difference, told = compare(loaded, "a red circle", "", attention=profile, **SIZE)
    assert torch.equal(difference, (4 * (other - dense).abs()).clamp(0, 1))
    assert float(difference.max()) > 0
    assert "times as fast" in told
    assert "PSNR" in told


def test_wrong_input_is_one_line(loaded, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="frames 8 is not 4k"):
        render(loaded, "a", "", **{**SIZE, "frames": 8})
    with pytest.raises(InvalidSettings, match="unknown svg2 knob 'x'"):
        sparse("svg2", "x=1", 0.2, "full", "full", "off", "")
    with pytest.raises(InvalidSettings, match="no model 'nowhere'"):
        load("nowhere", "float32", "cpu", "none")
    with pytest.raises(InvalidSettings, match="offload 'model' needs a CUDA device"):
        load("tiny-world", "float32", "cpu", "model")
    with pytest.raises(InvalidSettings, match="interval must be two rising shares"):
        guidance(1.0, "all", 1.0, 0.5, 0.5, 0.0)
    with pytest.raises(InvalidSettings, match="cannot read head set"):
        head_set(str(tmp_path / "none.json"))


def test_a_profile_and_a_head_set_come_from_files(loaded, tmp_path: Path) -> None:
    Profile(SVG2(), precision="int8").save(tmp_path / "p.yaml")
    (profile,) = sparse("svg-ear", "", 0.2, "full", "full", "off", str(tmp_path / "p.yaml"))
    assert (profile.method.name, profile.precision) == ("svg2", "int8")
    transformer = loaded.pipe.transformer
    found = find_heads("blocks.0", None, ModelShape.of(transformer, find_family(transformer)))
    found.save(tmp_path / "h.json")
    (heads,) = head_set(str(tmp_path / "h.json"))
    (guided,) = guidance(1.0, "blocks.1", 1.0, 0.0, 1.0, 0.0, heads)
    assert guided.heads == heads
    kept = dataclasses.replace(heads, settings={"perturbation": "uniform", "scale": 9.0})
    (guided,) = guidance(1.0, "all", 1.0, 0.0, 1.0, 0.0, kept)
    assert (guided.settings.perturbation, guided.settings.scale) == ("uniform", 1.0)


def test_the_shim_comes_and_goes(tmp_path: Path, capsys) -> None:
    assert cli.main(["comfyui", "install", str(tmp_path)]) == 2
    assert "has no custom_nodes: give ComfyUI's folder" in capsys.readouterr().err
    (tmp_path / "custom_nodes").mkdir()
    for _ in range(2):
        assert cli.main(["comfyui", "install", str(tmp_path)]) == 0
    shim = tmp_path / "custom_nodes/dit_accel"
    names: dict = {}
    exec((shim / "__init__.py").read_text(), names)
    assert set(names["NODE_CLASS_MAPPINGS"]) == {node.id for node in NODES}
    (shim / "mine.py").write_text("")
    for verb in ("install", "uninstall"):
        assert cli.main(["comfyui", verb, str(tmp_path)]) == 2
        assert "is not ours" in capsys.readouterr().err
    (shim / "mine.py").unlink()
    mine = shim / "example_workflows/mine.json"
    mine.write_text("{}")
    assert cli.main(["comfyui", "uninstall", str(tmp_path)]) == 2
    mine.unlink()
    assert cli.main(["comfyui", "uninstall", str(tmp_path)]) == 0
    assert not shim.exists()
    assert cli.main(["comfyui", "uninstall", str(tmp_path)]) == 0
    assert "nothing of dit-accel in" in capsys.readouterr().out
