"""Guidance gives the latents of diffusers' own PAG pipelines on the same weights."""

import pytest
import torch
from diffusers import (
    HunyuanDiTPAGPipeline,
    PixArtSigmaPAGPipeline,
    StableDiffusion3PAGPipeline,
)
from support.tiny_components import hunyuan_dit_parts, pixart_parts, ready, sd3_parts
from support.tiny_pipelines import TINY

PAG_PIPELINES = {
    "sd3": lambda: StableDiffusion3PAGPipeline(**sd3_parts(), pag_applied_layers=r"blocks\.1\."),
    "pixart": lambda: PixArtSigmaPAGPipeline(
        **pixart_parts(), pag_applied_layers=r"transformer_blocks\.1\."
    ),
    "hunyuan-dit": lambda: HunyuanDiTPAGPipeline(
        **hunyuan_dit_parts(), pag_applied_layers=r"blocks\.1\."
    ),
}


@pytest.mark.parametrize(
    ("name", "adaptive", "cfg"),
    [
        ("sd3", 0.0, False),
        ("sd3", 0.0, True),
        ("sd3", 0.004, False),
        ("sd3", 0.004, True),
        # PixArt's own pipeline raises with an adaptive scale, and HunyuanDiT's without classifier-free guidance.
        ("pixart", 0.0, False),
        ("pixart", 0.0, True),
        ("hunyuan-dit", 0.0, True),
        ("hunyuan-dit", 0.004, True),
    ],
)
def test_equals_diffusers_pag(name, adaptive, cfg) -> None:
    tiny = TINY[name]
    theirs = ready(PAG_PIPELINES[name]())
    expected = tiny.run(theirs, cfg, pag_scale=3.0, pag_adaptive_scale=adaptive)
    pipe = tiny.build()
    plain = tiny.run(pipe, cfg)
    with pipe.enable_perturbed_guidance(3.0, heads=tiny.blocks[1], adaptive=adaptive):
        guided = tiny.run(pipe, cfg)
    assert (guided - plain).abs().max() > 1e-2
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
