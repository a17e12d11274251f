"""Guidance gives the latents of diffusers' own PAG pipelines on the same weights."""

import pytest
import torch
from diffusers import PixArtSigmaPAGPipeline, StableDiffusion3PAGPipeline
from support.tiny_pipelines import TINY, pixart_parts, ready, sd3_parts

PAG_PIPELINES = {
    "sd3": lambda: StableDiffusion3PAGPipeline(**sd3_parts(), pag_applied_layers=r"blocks\.1\."),
    "pixart": lambda: PixArtSigmaPAGPipeline(
        **pixart_parts(), pag_applied_layers=r"transformer_blocks\.1\."
    ),
}


@pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
@pytest.mark.parametrize(
    ("name", "adaptive"),
    # PixArt's own pipeline raises with an adaptive scale.
    [("sd3", 0.0), ("sd3", 0.004), ("pixart", 0.0)],
)
def test_equals_diffusers_pag(name, cfg, adaptive) -> None:
    tiny = TINY[name]
    theirs = ready(PAG_PIPELINES[name]())
    expected = tiny.run(theirs, cfg, pag_scale=3.0, pag_adaptive_scale=adaptive)
    pipe = tiny.build()
    plain = tiny.run(pipe, cfg)
    with pipe.enable_perturbed_guidance(3.0, heads="transformer_blocks.1", adaptive=adaptive):
        guided = tiny.run(pipe, cfg)
    assert (guided - plain).abs().max() > 1e-2
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
