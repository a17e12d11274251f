"""The nodes without ComfyUI: their declarations, and runs on a tiny pipeline."""

import asyncio
import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.comfyui_workflows import load_workflow, to_prompt

from dit_accel import SVG2
from dit_accel.comfyui.native_nodes import REPORTS
from dit_accel.comfyui.pipeline_nodes import (
    LoadedPipeline,
    choose_placement,
    compare,
    load,
    render,
    start_image,
)
from dit_accel.comfyui.registry import NODES
from dit_accel.comfyui.replay import read_workflow_settings
from dit_accel.comfyui.result_nodes import compare_images, report
from dit_accel.comfyui.settings_nodes import load_head_set, make_attention, make_guidance
from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import ModelShape, make_head_set
from dit_accel.io.images import read_image
from dit_accel.methods import METHODS
from dit_accel.runtime.active_sessions import session_of
from dit_accel.runtime.profile import Profile
from dit_accel_pipelines import find_family

SIZE = {"width": 64, "height": 64, "frames": 9, "steps": 2, "guidance_scale": 4.0, "seed": 1}


@pytest.fixture
def loaded(wan) -> LoadedPipeline:
    return LoadedPipeline(wan, "tiny-world", LoadOptions())


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.id)
def test_declaration_fits_the_function(node) -> None:
    parameters = inspect.signature(node.run).parameters
    assert {declared.name for declared in node.inputs} == set(parameters)
    assert set(node.files) | set(node.checked_inputs) <= set(parameters)
    assert node.aliases
    assert len({node.title for node in NODES}) == len(NODES)
    for declared in node.inputs:
        optional = parameters[declared.name].default is not inspect.Parameter.empty
        assert declared.optional == optional
        assert declared.tooltip.endswith(".")
        if declared.kind in ("combo", "dynamic"):
            assert declared.default in declared.options
        if declared.kind in ("int", "float"):
            assert declared.low <= declared.default <= declared.high
    assert node.id.startswith("DitAccel")
    assert node.category
    assert node.description.endswith(".")


class FakeType:
    """A type of ComfyUI's V3 interface, which records the arguments of its inputs and outputs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def Input(self, name: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(type=self.name, name=name, **options)

    def Output(self, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(type=self.name, **options)


class FakeDynamicCombo(FakeType):
    """A combo of ComfyUI whose choice adds inputs."""

    def Option(self, key: str, inputs: list) -> SimpleNamespace:
        return SimpleNamespace(key=key, inputs=inputs)


@pytest.fixture
def classes(monkeypatch) -> dict[str, Any]:
    """The classes that ComfyUI would register, by id of the node."""
    module = ModuleType("comfy_api.latest")
    module.ComfyExtension = type("ComfyExtension", (), {})
    module.io = SimpleNamespace(
        ComfyNode=type("ComfyNode", (), {}),
        Schema=lambda **options: SimpleNamespace(**options),
        NodeOutput=lambda *outputs: outputs,
        Custom=FakeType,
        DynamicCombo=FakeDynamicCombo("dynamic"),
        **{name: FakeType(name.lower()) for name in ("Int", "Float", "String", "Boolean", "Combo")},
    )
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", module)
    monkeypatch.delitem(sys.modules, "dit_accel.comfyui.node_classes", raising=False)
    from dit_accel.comfyui import comfy_entrypoint

    extension = asyncio.run(comfy_entrypoint())
    registered = asyncio.run(extension.get_node_list())
    return {kind.define_schema().node_id: kind for kind in registered}


def test_classes_say_what_the_declarations_say(classes) -> None:
    assert list(classes) == [node.id for node in NODES]
    for node in NODES:
        kind = classes[node.id]
        schema = kind.define_schema()
        assert (schema.display_name, schema.category) == (node.title, node.category)
        assert schema.description == node.description
        assert schema.search_aliases == list(node.aliases)
        assert hasattr(kind, "validate_inputs") == bool(node.check)
        if node.check:
            signature = inspect.getfullargspec(kind.validate_inputs)
            assert signature.args == ["cls", *node.checked_inputs]
            assert bool(signature.varkw) == node.is_dynamic
        assert [(o.type, o.display_name) for o in schema.outputs] == [
            (output.type, output.name) for output in node.outputs
        ]
        assert hasattr(kind, "fingerprint_inputs") == bool(node.files)
        for declared, built in zip(node.inputs, schema.inputs, strict=True):
            assert (built.name, built.tooltip) == (declared.name, declared.tooltip)
            if declared.kind == "dynamic":
                assert {option.key for option in built.options} == set(METHODS)
                assert built.options[0].key == declared.default
            elif declared.kind == "socket":
                assert (built.type, built.optional) == (declared.type, declared.optional)
            else:
                assert built.default == declared.default
                assert built.optional == declared.optional
                assert bool(getattr(built, "advanced", None)) == declared.advanced
                assert getattr(built, "min", None) == declared.low
                assert getattr(built, "max", None) == declared.high
                assert tuple(getattr(built, "options", ())) == declared.options


LOAD = {"model": "tiny-world", "dtype": "auto", "device": "auto", "offload": "none"}
DENSE_INT8 = {"method": "dense", "knobs": "", "profile": "", "precision": "int8"}


@pytest.mark.parametrize(
    ("name", "inputs", "error"),
    [
        ("DitAccelSparse", {"method": "svg2", "knobs": "top_p=0.5", "profile": ""}, None),
        ("DitAccelSparse", {"method": "svg2", "knobs": "x=1", "profile": ""}, "unknown svg2 knob"),
        ("DitAccelSparse", {"method": "svg2", "knobs": None, "profile": ""}, None),
        ("DitAccelMethod", {"method": {"method": "svg2", "top_p": 0.5}, "more": ""}, None),
        ("DitAccelMethod", {"method": {"method": "svg2", "top_p": 1.5}, "more": ""}, "top_p"),
        ("DitAccelMethod", {"method": {"method": "svg2", "top_p": None}, "more": "x=1"}, None),
        ("DitAccelMethod", {"method": {"method": "svg2"}, "more": "x=1"}, "unknown svg2 knob"),
        ("DitAccelSparse", DENSE_INT8, "precision int8 is for sparse calls"),
        (
            "DitAccelMethod",
            {"method": {"method": "dense"}, "more": "", "guard": "on"},
            "guard 'on'",
        ),
        ("DitAccelNativeAttention", DENSE_INT8, "precision int8 is for sparse calls"),
        ("DitAccelProfile", {"profile": "balanced", "file": ""}, None),
        ("DitAccelProfile", {"profile": "balanced", "file": "a.yaml"}, "file has no effect"),
        ("DitAccelProfile", {"profile": "file", "file": " "}, "file is empty"),
        ("DitAccelProfile", {"profile": "file", "file": "nowhere.yaml"}, "nowhere.yaml"),
        ("DitAccelHeadSet", {"path": " "}, "path is empty"),
        ("DitAccelNativeGuidance", {"layers": "auto"}, None),
        ("DitAccelNativeGuidance", {"layers": "middle"}, "layers are written like"),
        (
            "DitAccelNativeAttention",
            {"method": "svg2", "knobs": "", "profile": "nowhere.yaml"},
            "nowhere.yaml",
        ),
        ("DitAccelLoad", {**LOAD, "model": "nowhere"}, "no model 'nowhere'"),
        ("DitAccelLoad", {**LOAD, "device": "gpu"}, "device"),
    ],
)
def test_wrong_texts_are_told_when_a_workflow_is_queued(classes, name, inputs, error) -> None:
    (node,) = (node for node in NODES if node.id == name)
    untouched = {"precision": "full", "guard": "off"}
    given = {name: value for name, value in untouched.items() if name in node.checked_inputs}
    told = classes[name].validate_inputs(**given | inputs)
    assert told is True if error is None else error in told


def test_importing_the_package_loads_no_node() -> None:
    code = "import sys, dit_accel.comfyui.install; print({'torch', 'diffusers'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "set()"


def test_ids_never_change() -> None:
    assert [node.id for node in NODES] == [
        "DitAccelLoad",
        "DitAccelRender",
        "DitAccelCompare",
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


def test_render_restores_the_pipeline(loaded, classes) -> None:
    knobs = "density=0.3\nschedule.min_tokens=0"
    (profile,) = make_attention("svg-ear", knobs, 0.0, "full", "full", "off", "")
    (guidance,) = make_guidance(2.0, "blocks.1:0", 0.5, 0.0, 1.0, 0.0)
    inputs = {"pipeline": loaded, "prompt": "a red circle", "negative_prompt": "", **SIZE}
    node = classes["DitAccelRender"]
    frames, report = node.execute(attention=profile, guidance=guidance, **inputs)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == torch.float32
    assert "svg-ear on wan" in report
    assert "guidance 2 in 2 forwards" in report
    assert session_of(loaded.pipe) is None


def test_start_image(loaded, monkeypatch) -> None:
    image = torch.rand(2, 64, 64, 3)
    with pytest.raises(InvalidSettings, match="does not start from an image: disconnect it"):
        render(loaded, "a red circle", "", image=image, **SIZE)

    class FromImage:
        def __call__(self, image: Any) -> None: ...

    other = dataclasses.replace(loaded, pipe=FromImage())
    settings = RenderSettings("a red circle")
    with (
        pytest.raises(InvalidSettings, match="FromImage starts from an image: connect one"),
        start_image(other, settings, None),
    ):
        pass
    with start_image(other, settings, image) as started:
        read = torch.from_numpy(np.asarray(read_image(started.image)))
        assert torch.equal(read, (image[0] * 255 + 0.5).to(torch.uint8))
    assert not Path(started.image).exists()


def test_automatic_device_and_dtype(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_placement("auto", "auto", "none") == LoadOptions("cpu", "float32")
    assert choose_placement("auto", "float16", "none").dtype == "float16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_placement(" auto ", "auto", "model") == LoadOptions(
        "cuda", "bfloat16", offload="model"
    )
    assert choose_placement("cpu", "auto", "none") == LoadOptions("cpu", "float32")


def test_two_clips_are_compared() -> None:
    first = torch.full((3, 8, 8, 3), 0.5)
    second = first.clone()
    assert compare_images(first, second)[1] == "The clips are equal."
    second[1] += 0.1
    difference, figures = compare_images(first, second)
    assert torch.allclose(difference[1], torch.tensor(0.4), atol=1e-6)
    assert not difference[0].any()
    # Two equal frames count as 100 dB, and 0.1 is 20 dB.
    assert figures.startswith("PSNR 73.33 dB, worst frame 1 with 20.00 dB")
    with pytest.raises(InvalidSettings, match="the clips have different shapes"):
        compare_images(first, second[:1])


def test_report_of_a_model() -> None:
    reports = {REPORTS: [lambda: "first", lambda: "second"]}
    assert report(SimpleNamespace(get_attachment=reports.get), None) == ("first\nsecond",)
    with pytest.raises(InvalidSettings, match="no node of DiT-Accel changed this model"):
        report(SimpleNamespace(get_attachment={}.get), None)


def test_changed_file_is_read_again(tmp_path: Path, classes) -> None:
    fingerprint = classes["DitAccelSparse"].fingerprint_inputs
    path = tmp_path / "p.yaml"
    assert fingerprint(profile=str(path)) == fingerprint(profile="") == [None]
    Profile().save(path)
    before = fingerprint(profile=str(path))
    os.utime(path, ns=(1, 1))
    assert fingerprint(profile=str(path)) != before


def test_progress_follows_the_steps_and_interrupt_restores_the_pipeline(
    loaded, monkeypatch
) -> None:
    steps: list[int] = []
    interrupted = False

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int, preview: object = None) -> None:
            assert value <= total == self.total == 3
            assert preview is None
            steps.append(value)

    def throw() -> None:
        if interrupted and len(steps) > 5:
            raise InterruptedError("interrupted by its user")

    names = ("comfy", "comfy.model_management", "comfy.utils", "comfy.latent_formats")
    modules = {name: ModuleType(name) for name in names}
    modules["comfy"].latent_formats = modules["comfy.latent_formats"]
    modules["comfy"].model_management = modules["comfy.model_management"]
    modules["comfy"].utils = modules["comfy.utils"]
    modules["comfy.utils"].ProgressBar = ProgressBar
    modules["comfy.model_management"].throw_exception_if_processing_interrupted = throw
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    inputs = {**SIZE, "steps": 3, "guidance_scale": 1.0}
    before, _ = render(loaded, "a red circle", "", **inputs)
    assert steps == [0, 1, 2, 3]
    transformer = loaded.pipe.transformer
    processors = transformer.attn_processors
    interrupted = True
    with pytest.raises(InterruptedError):
        render(loaded, "a red circle", "", **inputs)
    assert session_of(loaded.pipe) is None
    assert all(now is processors[name] for name, now in transformer.attn_processors.items())
    assert not transformer._forward_pre_hooks
    interrupted = False
    after, _ = render(loaded, "a red circle", "", **inputs)
    assert torch.equal(after, before)


def test_settings_are_read_from_a_workflow(tmp_path: Path) -> None:
    nodes = to_prompt(load_workflow("tiny_world_render"))
    settings = read_workflow_settings(nodes)
    assert (settings["model"], settings["seed"]) == ("tiny-world", 0)
    assert settings["guidance_scale"] == 1.0
    assert (settings["method"], settings["knobs"]["schedule.min_tokens"]) == ("svg-ear", 0)
    guidance = {"scale": 2.0, "heads": "blocks.3:1", "softness": 0.5, "start": 0.0, "end": 0.4}
    nodes["9"] = {"class_type": "DitAccelGuidance", "inputs": {**guidance, "rescale": 0.0}}
    nodes["2"]["inputs"]["guidance"] = ["9", 0]
    heads = read_workflow_settings(nodes)["heads"]
    assert heads["heads"] == [["blocks", 3, [1]]]
    assert heads["settings"]["interval"] == (0.0, 0.4)
    nodes["8"] = {"class_type": "SomeText", "inputs": {}}
    nodes["2"]["inputs"]["prompt"] = ["8", 0]
    with pytest.raises(InvalidSettings, match="prompt of DitAccelRender comes from SomeText"):
        read_workflow_settings(nodes)
    with pytest.raises(InvalidSettings, match="has 0 renders of ours"):
        read_workflow_settings({"8": nodes["8"]})


def test_compare_returns_both_clips_and_their_difference(loaded) -> None:
    knobs = "top_p=0.2;schedule.min_tokens=0"
    (profile,) = make_attention("svg2", knobs, 0.0, "full", "full", "off", "")
    outputs = compare(loaded, "a red circle", "", attention=profile, **SIZE)
    dense, accelerated, difference, figures = outputs
    assert torch.equal(difference, (4 * (accelerated - dense).abs()).clamp(0, 1))
    assert float(difference.max()) > 0
    assert "times as fast" in figures
    assert "PSNR" in figures


def test_invalid_inputs(loaded, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="frames 8 is not 4k"):
        render(loaded, "a", "", **{**SIZE, "frames": 8})
    with pytest.raises(InvalidSettings, match="unknown svg2 knob 'x'"):
        make_attention("svg2", "x=1", 0.2, "full", "full", "off", "")
    with pytest.raises(InvalidSettings, match="no model 'nowhere'"):
        load("nowhere", "float32", "cpu", "none")
    with pytest.raises(InvalidSettings, match="offload 'model' needs a CUDA device"):
        load("tiny-world", "float32", "cpu", "model")
    with pytest.raises(InvalidSettings, match="interval must be two rising fractions"):
        make_guidance(1.0, "all", 1.0, 0.5, 0.5, 0.0)
    with pytest.raises(InvalidSettings, match="cannot read head set"):
        load_head_set(str(tmp_path / "none.json"))
    with pytest.raises(InvalidSettings, match="path is empty: name the JSON file of a head set"):
        load_head_set(" ")
    with pytest.raises(InvalidSettings, match="knobs are written KNOB=VALUE, got 'top_p'"):
        make_attention("svg2", "top_p", 0.2, "full", "full", "off", "")


def test_profile_and_head_set_from_files(loaded, tmp_path: Path) -> None:
    Profile(SVG2(), precision="int8").save(tmp_path / "p.yaml")
    (profile,) = make_attention("svg-ear", "", 0.2, "full", "full", "off", str(tmp_path / "p.yaml"))
    assert (profile.method.name, profile.precision) == ("svg2", "int8")
    transformer = loaded.pipe.transformer
    shape = ModelShape.from_transformer(transformer, find_family(transformer))
    make_head_set("blocks.0", None, shape).save(tmp_path / "h.json")
    (heads,) = load_head_set(str(tmp_path / "h.json"))
    (guidance,) = make_guidance(1.0, "blocks.1", 1.0, 0.0, 1.0, 0.0, heads)
    assert guidance.heads == heads
    heads = dataclasses.replace(heads, settings={"perturbation": "uniform", "scale": 9.0})
    (guidance,) = make_guidance(1.0, "all", 1.0, 0.0, 1.0, 0.0, heads)
    assert (guidance.settings.perturbation, guidance.settings.scale) == ("uniform", 1.0)
