"""The node without ComfyUI: its contract, and a run."""

import inspect

import pytest
import torch

from dit_accel.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from dit_accel.session import session_of


def test_node_contract() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for node in NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        names = {*inputs["required"], *inputs.get("optional", {})}
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert names == set(parameters) - {"self"}
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert node.CATEGORY
        assert node.DESCRIPTION


def test_render_node_makes_frames(wan) -> None:
    node = NODE_CLASS_MAPPINGS["DitAccelRender"]()
    options = {"steps": 2, "guidance_scale": 4.0, "seed": 1}
    frames, report = node.render(wan, "a red circle", "svg2", 64, 64, 9, **options)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == torch.float32
    assert 0 <= float(frames.min()) <= float(frames.max()) <= 1
    assert "svg2 on wan" in report
    assert session_of(wan) is None


def test_render_node_refuses_a_wrong_size(wan) -> None:
    node = NODE_CLASS_MAPPINGS["DitAccelRender"]()
    with pytest.raises(ValueError, match="frames 8 is not 4k"):
        node.render(wan, "a", "svg2", 64, 64, 8, 1, 1.0, 0)
