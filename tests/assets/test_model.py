"""Test the bundled model: diffusers loads it, its size is as documented, and it draws what a prompt says."""

import json
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

from dit_accel_assets import tiny_world_path
from dit_accel_assets.oracle import look
from dit_accel_assets.world import SIZES, is_held_out, parse_caption, render, sample_scenes

LOAD = """
import sys
from diffusers import WanPipeline
pipe = WanPipeline.from_pretrained(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("dit_accel")]
print(type(pipe.vae).__name__, type(pipe.transformer).__name__, type(pipe.text_encoder).__name__)
"""


def test_diffusers_loads_it_without_our_code(tmp_path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", LOAD, str(tiny_world_path())],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.split() == ["AutoencoderKLWan", "WanTransformer3DModel", "UMT5EncoderModel"]


def test_size_is_as_documented() -> None:
    config = json.loads((tiny_world_path() / "transformer/config.json").read_text())
    assert config["num_layers"] >= 8
    assert config["attention_head_dim"] == 64
    assert config["num_attention_heads"] >= 4
    size = sum(p.stat().st_size for p in tiny_world_path().rglob("*") if p.is_file())
    assert size < 32e6
    assert not list(tiny_world_path().rglob("*.bin"))
    for path in tiny_world_path().rglob("*.json"):
        assert "/" not in json.loads(path.read_text()).get("_name_or_path", "")


@pytest.mark.parametrize(
    "size",
    [
        "smoke",
        pytest.param("study", marks=pytest.mark.slow),
        pytest.param("show", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_vae_reconstructs_held_out_clips(tiny_world, size: str) -> None:
    psnrs = []
    for scene in sample_scenes(np.random.default_rng(5), [1, 2, 1, 2], held_out=True):
        clip = torch.from_numpy(render(scene, *SIZES[size]))[None].permute(0, 4, 1, 2, 3)
        latent = tiny_world.vae.encode(clip * 2 - 1).latent_dist.mode()
        decoded = (tiny_world.vae.decode(latent).sample.clamp(-1, 1) + 1) / 2
        error = (decoded - clip).square().mean(dim=(0, 1, 3, 4))
        psnrs.append(float((-10 * error.log10()).mean()))
    assert np.mean(psnrs) >= 33


def test_clip_shows_what_the_prompt_says(tiny_world) -> None:
    prompt = "a red circle moving left on a black background"
    height, width, frames = SIZES["smoke"]
    # The scheduler takes its noise from PyTorch's own generator.
    torch.manual_seed(0)
    clip = tiny_world(
        prompt,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=20,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    scene = parse_caption(prompt)
    assert scene is not None
    assert look(clip).agrees_with(scene), str(look(clip))


def test_shipped_prompts_are_held_out_captions() -> None:
    text = files("dit_accel_assets").joinpath("prompts/tiny_world_held_out.txt").read_text()
    prompts = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(prompts) >= 10
    assert all(is_held_out(p) and parse_caption(p) for p in prompts)
