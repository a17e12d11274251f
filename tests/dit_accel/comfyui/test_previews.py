"""Previews of a pipeline's latents: with a fake previewer, and with ComfyUI's own."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_components import flux
from support.tiny_pipelines import embeds, pooled

from dit_accel.comfyui.pipeline_nodes import LoadedPipeline, render
from dit_accel.comfyui.previews import TINY_WORLD_COLORS, find_latent_format, preview_steps
from dit_accel.generation.placement import LoadOptions

SIZE = {"width": 64, "height": 64, "frames": 5, "guidance_scale": 1.0, "seed": 1}
FOUR = SimpleNamespace(latent_channels=4)


@pytest.fixture
def previewed(monkeypatch) -> Callable[[Any], list[torch.Tensor]]:
    """Make a previewer for a format of latents. Return the list of the latents that it gets."""

    def build(latent_format: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        previewer = SimpleNamespace(decode_latent_to_preview_image=lambda _, x0: seen.append(x0))
        module: Any = ModuleType("latent_preview")
        module.get_previewer = lambda _, given: previewer if given is latent_format else None
        monkeypatch.setitem(sys.modules, "latent_preview", module)
        monkeypatch.setattr(
            "dit_accel.comfyui.previews.find_latent_format", lambda _: latent_format
        )
        return seen

    return build


def test_last_preview_equals_the_latents(previewed, run_wan, wan) -> None:
    seen = previewed(SimpleNamespace(latent_channels=8))
    before = run_wan(wan)
    with preview_steps(wan, 64, 64, lambda _: None):
        latents = run_wan(wan)
    assert torch.equal(latents, before)
    assert len(seen) == 4
    torch.testing.assert_close(seen[-1], latents)
    assert not torch.allclose(seen[0], latents, atol=1e-2)
    assert "step" not in vars(wan.scheduler)


def test_packed_latents_are_unpacked(previewed) -> None:
    seen = previewed(FOUR)
    pipe = flux()
    arguments = {"prompt_embeds": embeds(0), "pooled_prompt_embeds": pooled(0)}
    arguments |= {"height": 32, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    with preview_steps(pipe, 32, 64, lambda _: None):
        packed = pipe(**arguments).images
    expected = pipe._unpack_latents(packed, 32, 64, pipe.vae_scale_factor)
    assert len(seen) == 2
    torch.testing.assert_close(seen[-1], expected)


def test_latents_of_other_formats_have_no_previews(previewed, run_wan, wan) -> None:
    seen = previewed(FOUR)
    with preview_steps(wan, 64, 64, lambda _: None):
        run_wan(wan)
    assert not seen


def test_scheduler_is_restored_after_an_error(previewed, run_wan, wan) -> None:
    previewed(SimpleNamespace(latent_channels=8))

    def fail(_: object) -> None:
        raise InterruptedError("interrupted by its user")

    with pytest.raises(InterruptedError), preview_steps(wan, 64, 64, fail):
        run_wan(wan)
    assert "step" not in vars(wan.scheduler)


@pytest.mark.parametrize(
    ("kind", "config", "name"),
    [
        ("AutoencoderKLWan", {"z_dim": 16}, "Wan21"),
        ("AutoencoderKLWan", {"z_dim": 48}, "Wan22"),
        ("AutoencoderKLWan", {"z_dim": 8}, None),
        ("AutoencoderKLQwenImage", {"z_dim": 16}, "Wan21"),
        ("AutoencoderKLHunyuanVideo", {"latent_channels": 16}, "HunyuanVideo"),
        ("AutoencoderKLMochi", {"latent_channels": 12}, "Mochi"),
        ("AutoencoderKL", {"latent_channels": 16, "scaling_factor": 0.3611}, "Flux"),
        ("AutoencoderKL", {"latent_channels": 16, "scaling_factor": 1.5305}, "SD3"),
        ("AutoencoderKL", {"latent_channels": 4, "scaling_factor": 0.18215}, None),
    ],
)
def test_formats_of_comfyui(comfy, kind, config, name) -> None:
    vae = type(kind, (), {"config": config})()
    found = find_latent_format(SimpleNamespace(vae=vae, name_or_path=""))
    assert (type(found).__name__ if found else None) == name
    channels = config.get("z_dim", config.get("latent_channels"))
    assert found is None or (found.latent_channels, found.latent_rgb_factors is None) == (
        channels,
        False,
    )


@pytest.mark.parametrize("method", ["latent2rgb", "none"])
def test_comfyui_shows_the_bundled_model(comfy, tiny_world, monkeypatch, method) -> None:
    import comfy.utils

    shown: list[Any] = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        if preview is not None:
            shown.append((value, total, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    previews = comfy.cli_args.LatentPreviewMethod(method)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", previews)
    loaded = LoadedPipeline(tiny_world, "tiny-world", LoadOptions())
    frames, _ = render(loaded, "a red circle moving up on a navy background", "", steps=3, **SIZE)
    if method == "none":
        assert not shown
        return
    assert [(value, total) for value, total, _ in shown] == [(1, 3), (2, 3), (3, 3)]
    kind, picture, _ = shown[-1][2]
    assert (kind, picture.size) == ("JPEG", (8, 8))
    colors = torch.tensor(list(picture.getdata())).view(8, 8, 3) / 255
    first = frames[0].view(8, 8, 8, 8, 3).mean((1, 3))
    assert float((colors - first).abs().mean()) < 0.1


def test_colors_fit_the_bundled_model(tiny_world) -> None:
    assert len(TINY_WORLD_COLORS) == tiny_world.vae.config.z_dim
