"""The example workflows fit the declarations of the nodes."""

from itertools import combinations
from typing import Any

import pytest
from support.comfyui_workflows import WORKFLOWS, load_workflow, read_widgets, to_prompt

from dit_accel.comfyui.node_declaration import Input
from dit_accel.comfyui.registry import NODES
from dit_accel.comfyui.replay import read_workflow_settings
from dit_accel.errors import InvalidSettings

DECLARED = {node.id: node for node in NODES}
EVERY_WORKFLOW = pytest.mark.parametrize("name", WORKFLOWS)


def is_valid(declared: Input, value: Any) -> bool:
    """Return True if a widget can have a value."""
    if declared.kind == "combo":
        return value in declared.options
    if declared.kind == "string":
        return isinstance(value, str)
    return isinstance(value, int | float) and declared.low <= value <= declared.high


def test_there_are_three_workflows() -> None:
    assert list(WORKFLOWS) == ["tiny_world_compare", "tiny_world_render", "wan_native_attention"]


@EVERY_WORKFLOW
def test_nodes_fit_their_declarations(name) -> None:
    nodes = [node for node in load_workflow(name)["nodes"] if node["type"] in DECLARED]
    assert nodes
    for node in nodes:
        declared = DECLARED[node["type"]]
        sockets = [(i.name, i.type) for i in declared.inputs if i.kind == "socket"]
        assert [(s["name"], s["type"]) for s in node["inputs"]] == sockets
        outputs = [(o.name, o.type) for o in declared.outputs]
        assert [(o["name"], o["type"]) for o in node["outputs"]] == outputs
        inputs = {i.name: i for i in declared.inputs}
        for widget, value in read_widgets(node).items():
            assert is_valid(inputs[widget], value), (node["type"], widget, value)
        required = {i.name for i in declared.inputs if i.kind == "socket" and not i.optional}
        assert required <= {s["name"] for s in node["inputs"] if s["link"] is not None}


@EVERY_WORKFLOW
def test_links_join_outputs_and_inputs_of_one_type(name) -> None:
    workflow = load_workflow(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, output, target, position, kind in workflow["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][position]
        assert start["type"] == kind
        assert end["type"] in (kind, "*")
        assert link in start["links"]
        assert link == end["link"]
    assert workflow["last_link_id"] == len(workflow["links"])
    assert workflow["last_node_id"] == max(nodes)


@EVERY_WORKFLOW
def test_nodes_do_not_overlap(name) -> None:
    title = 40
    boxes = [
        (x, y - title, x + width, y + height)
        for (x, y), (width, height) in (
            (node["pos"], node["size"]) for node in load_workflow(name)["nodes"]
        )
    ]
    for one, other in combinations(boxes, 2):
        apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
        assert apart, (one, other)


def test_page_can_offer_the_files_of_models() -> None:
    for node in load_workflow("wan_native_attention")["nodes"]:
        if node["type"].endswith("Loader"):
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].endswith(f"/{model['directory']}/{model['name']}")


@pytest.mark.parametrize(
    ("name", "method"), [("tiny_world_render", "svg-ear"), ("tiny_world_compare", "re-ttention")]
)
def test_workflows_of_pipelines_can_be_replayed(name, method) -> None:
    settings = read_workflow_settings(to_prompt(load_workflow(name)))
    assert (settings["model"], settings["method"]) == ("tiny-world", method)
    assert settings["knobs"]["schedule.min_tokens"] == 0


def png_workflow() -> dict[str, Any]:
    """Return the nodes of the smallest render, as ComfyUI stores them."""
    loaded = {"model": "tiny-world", "dtype": "float32", "device": "cpu", "offload": "none"}
    size = {"width": 64, "height": 64, "frames": 1, "steps": 1, "guidance_scale": 4.0, "seed": 0}
    inputs = {"pipeline": ["1", 0], "prompt": "a red circle", "negative_prompt": "", **size}
    return {
        "1": {"class_type": "DitAccelLoad", "inputs": loaded},
        "2": {"class_type": "DitAccelRender", "inputs": inputs},
    }


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        ("2", {"negative_prompt": None}, "DitAccelRender in the workflow has no negative_prompt"),
        ("2", {"pipeline": None}, "DitAccelRender in the workflow has no pipeline"),
        ("2", {"pipeline": "x"}, "pipeline of DitAccelRender in the workflow needs a link"),
        ("2", {"prompt": ["1", 0]}, "prompt of DitAccelRender in the workflow cannot come from"),
        (
            "2",
            {"steps": "x"},
            "steps of DitAccelRender in the workflow must be of type int, got 'x'",
        ),
        ("2", {"strength": 1}, "DitAccelRender in the workflow has an unknown input 'strength'"),
        ("1", {"model": None}, "DitAccelLoad in the workflow has no model"),
        ("1", {"model": 5}, "model of DitAccelLoad in the workflow must be of type string, got 5"),
    ],
)
def test_a_stored_workflow_that_lacks_an_input_is_refused(node, changes, message) -> None:
    nodes = png_workflow()
    assert read_workflow_settings(nodes)["prompt"] == "a red circle"
    inputs = {**nodes[node]["inputs"], **changes}
    nodes[node]["inputs"] = {name: value for name, value in inputs.items() if value is not None}
    with pytest.raises(InvalidSettings, match=message):
        read_workflow_settings(nodes)


@pytest.mark.parametrize("nodes", [[], 5, {"1": 5}, {"1": {"class_type": "DitAccelRender"}}])
def test_a_stored_workflow_of_another_form_is_refused(nodes) -> None:
    with pytest.raises(InvalidSettings, match="is not one that ComfyUI saves"):
        read_workflow_settings(nodes)
