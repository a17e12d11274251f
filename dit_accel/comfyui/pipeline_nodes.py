"""Nodes that run diffusers pipelines: load, settings, render and compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from dit_accel.comfyui.node_declaration import (
    Node,
    Output,
    choice_input,
    float_input,
    int_input,
    socket_input,
    text_input,
)
from dit_accel.comfyui.progress import free_memory, report_progress
from dit_accel.comfyui.settings_nodes import ATTENTION, CATEGORY, GUIDANCE, PIPELINE, Guidance
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import load_extension, require_extra
from dit_accel.generation.call_checks import uses_guidance
from dit_accel.generation.explain import format_levers
from dit_accel.generation.loading import load_pipeline, read_card
from dit_accel.generation.placement import DTYPES, OFFLOADS, LoadOptions
from dit_accel.generation.render import Clip, check_finite, render_with
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel.guidance import ModelShape
from dit_accel.hooks import config_of
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.io.images import to_bytes
from dit_accel.runtime.profile import Profile
from dit_accel_pipelines import SizeRule, find_family

AUTO = "auto"
"""Text for the device and the dtype that suit this machine."""


@dataclasses.dataclass(frozen=True)
class LoadedPipeline:
    """A loaded pipeline.

    Attributes:
        pipe: The pipeline.
        model: Name, folder or hub id that it was loaded from.
        load_options: How it was loaded.
    """

    pipe: DiffusionPipeline
    model: str
    load_options: LoadOptions


def load(model: str, dtype: str, device: str, offload: str) -> tuple[LoadedPipeline]:
    """Load a pipeline onto a device, from safetensors files only."""
    load_options = choose_placement(device, dtype, offload)
    load_options.check()
    if load_options.device != "cpu":
        free_memory()
    pipe = load_pipeline(read_card(model.strip()), load_options)
    pipe.set_progress_bar_config(disable=True)
    return (LoadedPipeline(pipe, model.strip(), load_options),)


def choose_placement(device: str, dtype: str, offload: str) -> LoadOptions:
    """Return load options in which ``"auto"`` means a GPU if there is one, and the dtype that suits the device."""
    device = device.strip()
    if device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == AUTO:
        dtype = "float32" if device == "cpu" else "bfloat16"
    return LoadOptions(device, dtype, offload=offload)


def check_model(model: str, dtype: str, device: str, offload: str) -> None:
    """Check a model's name and where it is loaded, without loading it.

    Raises:
        InvalidSettings: If there is no such model or device.
    """
    choose_placement(device, dtype, offload).check()
    name = model.strip()
    # A hub id can need the network, which would stop ComfyUI's page.
    if "/" not in name or Path(name).exists():
        read_card(name)


def render(
    pipeline: LoadedPipeline,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    attention: Profile | None = None,
    guidance: Guidance | None = None,
    image: Tensor | None = None,
) -> tuple[Tensor, str]:
    """Render a clip.

    Returns:
        Frames as ComfyUI's IMAGE, float32 ``[T, H, W, 3]`` in [0, 1], and the attention report as text.
    """
    settings = make_settings(
        pipeline, prompt, negative_prompt, width, height, frames, steps, guidance_scale, seed
    )
    with start_image(pipeline, settings, image) as settings:
        clip = render_clip(pipeline, settings, attention or Profile(), guidance)
    return torch.from_numpy(clip.frames), str(clip.attention)


def compare(
    pipeline: LoadedPipeline,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    attention: Profile | None = None,
    guidance: Guidance | None = None,
    image: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Render the same seed with dense and with sparse attention.

    Returns:
        The dense and the sparse frames, float32 ``[T, H, W, 3]`` in [0, 1], four times their difference, and metrics
        and seconds as text.
    """
    settings = make_settings(
        pipeline, prompt, negative_prompt, width, height, frames, steps, guidance_scale, seed
    )
    require_extra("the Compare node", "torchmetrics", "lpips", extra="comfyui")
    profile = attention or Profile()
    with start_image(pipeline, settings, image) as settings:
        clip = render_clip(pipeline, settings, profile, guidance)
        dense = render_clip(pipeline, settings, build_profile(settings.as_dense()), guidance)
    comparison = load_extension("comparison")
    metrics = comparison.quality_metrics(dense.frames, clip.frames, prompt)
    summary = comparison.summary(dense, clip, metrics, profile.method.name)
    ratio = comparison.reported_speedup(dense, clip)
    figures = summary if ratio is None else f"{summary}\n{ratio:.2f} times as fast"
    figures = f"{figures}\n{format_levers(clip.attention, {})}".rstrip()
    before, after = torch.from_numpy(dense.frames), torch.from_numpy(clip.frames)
    difference = (4 * (after - before).abs()).clamp(0, 1)
    return before, after, difference, figures


def make_settings(
    pipeline: LoadedPipeline,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> RenderSettings:
    """Return the inputs of a render as settings.

    Raises:
        InvalidSettings: If the pipeline does not support the size, with the nearest sizes, or if it ignores the
            negative prompt.
    """
    error = find_size_rule(pipeline.pipe).find_error(height, width, frames)
    if error:
        raise InvalidSettings(error)
    warn_unreadable([prompt], pipeline.model)
    kind, config = type(pipeline.pipe), pipeline.pipe.config
    true_scale = signature(kind.__call__).parameters.get("true_cfg_scale")
    if negative_prompt and true_scale is not None and true_scale.default <= 1:
        raise InvalidSettings(
            f"{kind.__name__} ignores negative_prompt with its true_cfg_scale of {true_scale.default:g}, which this "
            "node does not set: clear negative_prompt"
        )
    if negative_prompt and not uses_guidance(kind, config, guidance_scale):
        raise InvalidSettings(
            f"{kind.__name__} ignores negative_prompt with a guidance_scale of {guidance_scale:g}: raise it, or clear "
            "negative_prompt"
        )
    return RenderSettings(
        prompt=prompt,
        negative_prompt=negative_prompt or None,
        model=pipeline.model,
        height=height,
        width=width,
        frames=frames,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        **dataclasses.asdict(pipeline.load_options),
    )


@contextmanager
def start_image(
    pipeline: LoadedPipeline, settings: RenderSettings, image: Tensor | None
) -> Iterator[RenderSettings]:
    """Yield the settings of a render that starts from the first of ComfyUI's images ``[T, H, W, C]``, or without one.

    Raises:
        InvalidSettings: If the pipeline needs an image and has none, or has one and cannot use it.
    """
    kind = type(pipeline.pipe)
    parameter = signature(kind.__call__).parameters.get("image")
    if image is None:
        if parameter is not None and parameter.default is Parameter.empty:
            raise InvalidSettings(f"{kind.__name__} starts from an image: connect one")
        yield settings
        return
    if parameter is None:
        raise InvalidSettings(f"{kind.__name__} does not start from an image: disconnect it")
    with TemporaryDirectory() as folder:
        file = Path(folder, "image.png")
        Image.fromarray(to_bytes(image[0, :, :, :3].cpu().float().numpy())).save(file)
        yield dataclasses.replace(settings, image=str(file))


def render_clip(
    pipeline: LoadedPipeline, settings: RenderSettings, profile: Profile, guidance: Guidance | None
) -> Clip:
    """Render a clip with a profile and guidance, and leave the pipeline unchanged."""
    pipe = pipeline.pipe
    if guidance is not None:
        transformer = next(iter(transformers_of(pipe).values()))
        shape = ModelShape.from_transformer(transformer, find_family(transformer))
        settings = dataclasses.replace(settings, heads=guidance.bind(shape).to_dict())
    steps, height, width = settings.steps, settings.height, settings.width
    assert steps is not None
    assert height is not None
    assert width is not None
    with report_progress(pipe, steps, height, width):
        clip = render_with(pipe, settings, profile)
    return check_finite(clip, dataclasses.replace(settings, method=profile.method.name))


def find_size_rule(pipe: DiffusionPipeline) -> SizeRule:
    """Return the rule for the sizes that a loaded pipeline supports."""
    transformer = next(iter(transformers_of(pipe).values()))
    return find_family(transformer).size_rule(config_of(transformer), pipe.vae.config)


RENDER_INPUTS = [
    socket_input("pipeline", PIPELINE, "From 'Load DiT pipeline'."),
    text_input("prompt", "", "What the clip shows.", multiline=True),
    text_input("negative_prompt", "", "What the clip should not show.", multiline=True),
    int_input(
        "width", 256, 16, 16384, "Pixels. An unsupported size gives an error with the nearest.", 16
    ),
    int_input("height", 256, 16, 16384, "Pixels.", 16),
    int_input("frames", 49, 1, 1024, "Number of frames. 1 makes an image.", 4),
    int_input("steps", 25, 1, 1000, "Denoising steps."),
    float_input("guidance_scale", 4.0, 0.0, 30.0, 0.1, "Classifier-free guidance. 1 turns it off."),
    int_input("seed", 0, 0, 2**53 - 1, "Seed of the initial noise."),
    socket_input(
        "attention",
        ATTENTION,
        "From 'Sparse attention settings'. Without it: svg-ear.",
        optional=True,
    ),
    socket_input(
        "guidance",
        GUIDANCE,
        "From 'Perturbed guidance settings'. Without it: no guidance.",
        optional=True,
    ),
    socket_input(
        "image", "IMAGE", "First frame, for a pipeline that starts from an image.", optional=True
    ),
]

NODES = [
    Node(
        "DitAccelLoad",
        "Load DiT pipeline",
        CATEGORY,
        "Load a diffusers pipeline: tiny-world (bundled), a folder, or a hub id. Safetensors only.",
        [
            text_input(
                "model",
                "tiny-world",
                "tiny-world, a folder made by save_pretrained, or owner/name.",
            ),
            choice_input(
                "dtype",
                [AUTO, *DTYPES],
                AUTO,
                "Data type of the weights. auto: bfloat16, and float32 on a CPU.",
            ),
            text_input(
                "device", AUTO, "auto (a GPU if there is one), cpu, cuda or cuda:N.", advanced=True
            ),
            choice_input(
                "offload",
                OFFLOADS,
                "none",
                "Keep weights in CPU memory, per model or per layer.",
                advanced=True,
            ),
        ],
        [Output(PIPELINE, "pipeline")],
        load,
        aliases=("diffusers", "model loader", "wan", "flux", "tiny-world"),
        check=check_model,
    ),
    Node(
        "DitAccelRender",
        "Render DiT pipeline",
        CATEGORY,
        "Render a prompt. `dit-accel replay` repeats the render from a file that ComfyUI saved.",
        RENDER_INPUTS,
        [Output("IMAGE", "frames"), Output("STRING", "report")],
        render,
        aliases=("diffusers", "sampler", "text to video", "image to video"),
        shows=1,
    ),
    Node(
        "DitAccelCompare",
        "Compare DiT pipeline with dense",
        CATEGORY,
        "Render the same seed with dense and with sparse attention, and measure the difference.",
        RENDER_INPUTS,
        [
            Output("IMAGE", "dense"),
            Output("IMAGE", "accelerated"),
            Output("IMAGE", "difference"),
            Output("STRING", "figures"),
        ],
        compare,
        aliases=("psnr", "dense and sparse", "speedup"),
        shows=3,
    ),
]
