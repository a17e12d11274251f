"""Options that more than one subcommand takes, and how their texts are read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dit_accel.generation.settings import size_of


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--model``, how it is loaded, sizes, steps and guidance; the function gets them as ``request``, fields
    of `RenderSettings`.
    """
    options = [
        click.option(
            "--model",
            default="tiny-world",
            show_default=True,
            help="tiny-world, a folder, or a hub id.",
        ),
        click.option(
            "--size",
            type=click.Choice(["smoke", "study", "show"]),
            help="A size of the tiny world.",
        ),
        click.option(
            "--height", type=int, help="Pixels; with --width and --frames instead of --size."
        ),
        click.option("--width", type=int),
        click.option("--frames", type=int),
        click.option("--steps", type=int, help="Denoising steps."),
        click.option("--guidance-scale", type=float),
        click.option(
            "--true-cfg-scale",
            type=float,
            help="Classifier-free guidance where --guidance-scale is an input of the model (Flux, "
            "HunyuanVideo, Qwen-Image): above 1, with --negative-prompt.",
        ),
        click.option("--negative-prompt", type=str),
        click.option("--device", default="cpu", show_default=True),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            show_default=True,
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="SOURCE[:SCALE]",
            help="LoRA weights: a folder, a .safetensors file or a hub id; may be repeated.",
        ),
        click.option(
            "--offload",
            type=click.Choice(["none", "model", "group", "sequential"]),
            default="none",
            show_default=True,
            help="Keep what does not run in the CPU's memory: whole models, groups of layers, single ones.",
        ),
        click.option("--vae-tiling", is_flag=True, help="Decode in tiles: slower, in less memory."),
    ]

    @functools.wraps(function)
    def with_request(*arguments: Any, **given: Any) -> Any:
        pixels = size_of(*(given.pop(name) for name in ("size", "height", "width", "frames")))
        names = (
            *("model", "steps", "guidance_scale", "true_cfg_scale", "negative_prompt"),
            *("device", "dtype", "loras", "offload", "vae_tiling"),
        )
        request = {**pixels._asdict(), **{name: given.pop(name) for name in names}}
        return function(*arguments, request=request, **given)

    return functools.reduce(lambda f, option: option(f), reversed(options), with_request)


def guidance_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--pag-scale``, ``--heads`` and ``--softness``, added to the ``request`` of `model_options`."""
    options = [
        click.option(
            "--pag-scale",
            type=float,
            help="Perturbed-attention guidance; with --guidance-scale or without.",
        ),
        click.option(
            "--heads",
            help="Perturbed heads: a head set (.json, or tiny-world, which comes along), or like "
            '"blocks.7:0,4; blocks.9".  '
            "[default: all of the middle layer]",
        ),
        click.option("--softness", type=float, help="Share of the perturbed attention, 0 to 1."),
    ]

    @functools.wraps(function)
    def with_request(*arguments: Any, request: dict[str, Any], **given: Any) -> Any:
        own = {name: given.pop(name) for name in ("pag_scale", "heads", "softness")}
        return function(*arguments, request={**request, **own}, **given)

    return functools.reduce(lambda f, option: option(f), reversed(options), with_request)


def prompts_option(*, required: bool = False) -> Callable[..., Any]:
    """``--prompts``, the ``prompt_source`` that `dit_accel.io.prompts.read_prompts` reads."""
    return click.option(
        "--prompts",
        "prompt_source",
        metavar="FILE|SET",
        required=required,
        help="One prompt per line, .csv or .jsonl with a prompt column, or a set that comes along "
        "(tiny-world-held-out, spatial-relations, motions).",
    )


def backbone_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--lpips-backbone``, checked to be a file."""
    return click.option(
        "--lpips-backbone",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="torchvision's weights of LPIPS's network, AlexNet or VGG16 (.safetensors, .pth).  "
        "[default: AlexNet's in torch's cache]",
    )(function)
