"""Inputs of the nodes that a pipeline or a MODEL would ignore are refused."""

from unittest.mock import Mock

import pytest
from support.levers import tiny

from dit_accel import InvalidSettings
from dit_accel.comfyui import native_nodes
from dit_accel.comfyui.pipeline_nodes import LoadedPipeline, make_settings
from dit_accel.generation.placement import LoadOptions
from dit_accel.guidance import HeadSet, ModelShape


def test_a_negative_prompt_needs_the_scale_that_the_node_does_not_set() -> None:
    pipe, _ = tiny("flux")
    pipeline = LoadedPipeline(pipe, "flux", LoadOptions())
    size = {"width": 32, "height": 32, "frames": 1, "steps": 2, "guidance_scale": 4.0, "seed": 0}
    assert make_settings(pipeline, "a fox", "", **size).guidance_scale == 4.0
    with pytest.raises(
        InvalidSettings, match="ignores negative_prompt with its true_cfg_scale of 1"
    ):
        make_settings(pipeline, "a fox", "blue", **size)


def test_a_model_has_no_adaptive_scale() -> None:
    heads = HeadSet(
        ModelShape("FluxTransformer2DModel", {"blocks": 2}, 4, 8),
        {("blocks", 0): (1,)},
        {"adaptive": 0.003},
    )
    with pytest.raises(
        InvalidSettings, match="an adaptive scale, which guidance of a MODEL does not"
    ):
        native_nodes.patch_guidance(Mock(), 2.0, "0", 1.0, 0.0, 1.0, 0.0, heads)
