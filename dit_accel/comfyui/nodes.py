"""The render node: a diffusers pipeline and a prompt in, frames and a report out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dit_accel.methods import METHODS
from dit_accel.render import RenderSettings, build_profile, render
from dit_accel.seam import config_of
from dit_accel.session import transformers_of
from dit_accel_pipelines import SizeRule, find_family


class DitAccelRender:
    """Render a prompt with a diffusers pipeline, its attention accelerated."""

    CATEGORY: ClassVar[str] = "dit_accel"
    FUNCTION: ClassVar[str] = "render"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE", "STRING")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("frames", "report")
    DESCRIPTION: ClassVar[str] = (
        "Turn a prompt into frames with a diffusers pipeline and sparse attention."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Inputs as ComfyUI reads them."""
        whole = {"min": 1, "max": 16384}
        return {
            "required": {
                "pipeline": (
                    "DIT_PIPELINE",
                    {"tooltip": "A diffusers pipeline with a transformer."},
                ),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "method": (
                    list(METHODS),
                    {"default": "svg2", "tooltip": "How attention is made sparse."},
                ),
                "height": ("INT", {"default": 256, "step": 16, **whole}),
                "width": ("INT", {"default": 256, "step": 16, **whole}),
                "frames": ("INT", {"default": 49, **whole}),
                "steps": ("INT", {"default": 25, "min": 1, "max": 1000}),
                "guidance_scale": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 30.0, "step": 0.1}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            },
            "optional": {"negative_prompt": ("STRING", {"multiline": True, "default": ""})},
        }

    def render(
        self,
        pipeline: DiffusionPipeline,
        prompt: str,
        method: str,
        height: int,
        width: int,
        frames: int,
        steps: int,
        guidance_scale: float,
        seed: int,
        negative_prompt: str = "",
    ) -> tuple[Tensor, str]:
        """Frames as ComfyUI's IMAGE, float32 ``[T, H, W, 3]`` in [0, 1], and the attention report
        as text.

        Raises:
            ValueError: with one line, for a size or method that does not work.
        """
        settings = RenderSettings(
            prompt=prompt,
            negative_prompt=negative_prompt or None,
            method=method,
            height=height,
            width=width,
            frames=frames,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        build_profile(settings)
        complaint = size_rule_of(pipeline).complaint(height, width, frames)
        if complaint:
            raise ValueError(complaint)
        clip = render(pipeline, settings)
        return torch.from_numpy(clip.frames), str(clip.attention)


def size_rule_of(pipeline: DiffusionPipeline) -> SizeRule:
    """Which sizes a loaded pipeline takes."""
    transformer = next(iter(transformers_of(pipeline).values()))
    return find_family(transformer).size_rule(config_of(transformer), pipeline.vae.config)


NODE_CLASS_MAPPINGS = {"DitAccelRender": DitAccelRender}
NODE_DISPLAY_NAME_MAPPINGS = {"DitAccelRender": "DiT-Accel render"}
