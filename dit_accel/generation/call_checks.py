"""What a pipeline can be asked for, read from the signature of its call before any weight is loaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import diffusers

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.render import read_image
from dit_accel.generation.settings import RenderSettings

Parameters = Mapping[str, inspect.Parameter]

IN_PYTHON = "call it in Python, after pipe.enable_sparse_attention()"
NEEDED = (  # of pipelines whose names say so: None by default, but they cannot do without
    ("Inpaint|Fill", "mask_image"),
    ("Control", "control_image"),
    ("FunControl", "control_video"),
    ("VideoToVideo", "video"),
    ("TemporalRefine", "latents"),
    ("Img2Img|ImageToVideo|VideoToWorld|Refiner|QwenImageEdit|LongCatImageEdit", "image"),
)
GIVEN = ("prompt", "image")  # of those, what a request holds


def check_call(settings: RenderSettings, card: ModelCard) -> None:
    """What a pipeline cannot be asked for.

    Raises:
        InvalidSettings: naming it.
    """
    if card.output == "image" and settings.frames not in (None, 1):
        raise InvalidSettings(
            f"{card.pipeline} makes pictures: leave --frames out, got {settings.frames}"
        )
    pipeline = getattr(diffusers, card.pipeline, None)
    if pipeline is not None:
        taken = inspect.signature(pipeline.__call__).parameters
        _check_taken(settings, card, taken)
        _check_guidance(settings, card, taken)
    if settings.image is not None:
        read_image(settings.image)


def _check_taken(settings: RenderSettings, card: ModelCard, taken: Parameters) -> None:
    if "prompt" not in taken:
        raise InvalidSettings(f"{card.pipeline} takes no prompt: {IN_PYTHON}")
    if "layers" in taken:
        raise InvalidSettings(
            f"{card.pipeline} makes several transparent layers, no single picture to write: {IN_PYTHON}"
        )
    asked = {
        "negative_prompt": settings.negative_prompt,
        "image": settings.image,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames if card.output == "video" else None,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "true_cfg_scale": settings.true_cfg_scale,
    }
    for name, value in asked.items():
        if value is not None and name not in taken:
            raise InvalidSettings(f"{card.pipeline} takes no {name}: leave it out")
    needed = _needed(card.pipeline, taken)
    missing = [name for name in needed if name not in GIVEN]
    if missing:
        raise InvalidSettings(f"{card.pipeline} needs {', '.join(missing)}: {IN_PYTHON}")
    if "image" in needed and not settings.image:
        raise InvalidSettings(f"{card.pipeline} starts from a picture: give --image FILE")


def _needed(pipeline: str, taken: Parameters) -> list[str]:
    """What a pipeline cannot be called without."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name for pattern, name in NEEDED if re.search(pattern, pipeline)}
    return [
        name
        for name, parameter in taken.items()
        if name != "self"
        and parameter.kind not in several
        and (parameter.default is inspect.Parameter.empty or name in named)
    ]


def _check_guidance(settings: RenderSettings, card: ModelCard, taken: Parameters) -> None:
    """Refuse what a pipeline with two scales would ignore."""
    if "true_cfg_scale" not in taken:
        return
    given, negative = settings.true_cfg_scale, settings.negative_prompt
    scale = taken["true_cfg_scale"].default if given is None else given
    if negative is not None and scale <= 1:
        raise InvalidSettings(
            f"{card.pipeline} ignores a negative prompt with a true_cfg_scale of {scale:g}: "
            "give --true-cfg-scale above 1"
        )
    if negative is None and given is not None and given > 1:
        raise InvalidSettings(
            f"{card.pipeline} ignores a true_cfg_scale of {given:g} without a negative prompt: "
            "give --negative-prompt, at least ' '"
        )
    if settings.guidance_scale is not None and not _config(card, "guidance_embeds"):
        raise InvalidSettings(
            f"{card.transformer_class} of {card.source} ignores guidance_scale (guidance_embeds is off): "
            "give --true-cfg-scale and --negative-prompt"
        )


def _config(card: ModelCard, name: str) -> Any:
    """A value of the transformer's config; where its file has none, the default of the class."""
    if name in card.transformer:
        return card.transformer[name]
    kind = getattr(diffusers, card.transformer_class, None)
    parameters = inspect.signature(kind.__init__).parameters if kind is not None else {}
    return parameters[name].default if name in parameters else None
