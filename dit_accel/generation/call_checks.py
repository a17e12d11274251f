"""Check a request against the signature of a pipeline's call, before any weights are loaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.model_files import check_components
from dit_accel.generation.settings import RenderSettings

Parameters = Mapping[str, inspect.Parameter]

PYTHON_ONLY = "call it in Python, after pipe.enable_sparse_attention()"

# Arguments that are None by default, but that pipelines with such names cannot do without.
REQUIRED_BY_NAME = (
    ("Inpaint|Fill", "mask_image"),
    ("Control", "control_image"),
    ("FunControl", "control_video"),
    ("VideoToVideo", "video"),
    ("TemporalRefine", "latents"),
    ("Img2Img|ImageToVideo|VideoToWorld|Refiner|QwenImageEdit|LongCatImageEdit", "image"),
)

# Required arguments that a request can hold.
AVAILABLE = ("prompt", "image")


def check_call(settings: RenderSettings, card: ModelCard) -> None:
    """Check that a pipeline takes what a request gives, and needs nothing else; this imports diffusers.

    Raises:
        InvalidSettings: naming the argument.
    """
    import diffusers

    pipeline = getattr(diffusers, card.pipeline, None)
    if not (isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline)):
        raise InvalidSettings(
            f"{card.source}/model_index.json: _class_name is {card.pipeline}, which is no pipeline of this diffusers"
        )
    check_components(card.source, card.index)
    parameters = inspect.signature(pipeline.__call__).parameters
    _check_accepted(settings, card, parameters)
    _check_required(settings, card, parameters)
    if "true_cfg_scale" in parameters:
        _check_true_guidance(settings, card, parameters)
    elif "guidance_scale" in parameters:
        _check_guidance(settings, card, pipeline)


def _check_accepted(settings: RenderSettings, card: ModelCard, parameters: Parameters) -> None:
    """Refuse values that a pipeline's call has no parameter for."""
    if "prompt" not in parameters:
        raise InvalidSettings(f"{card.pipeline} takes no prompt: {PYTHON_ONLY}")
    if "layers" in parameters:
        raise InvalidSettings(
            f"{card.pipeline} makes several transparent layers, not one image to write: {PYTHON_ONLY}"
        )
    requested = {
        "negative_prompt": settings.negative_prompt,
        "image": settings.image,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames if card.output == "video" else None,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "true_cfg_scale": settings.true_cfg_scale,
    }
    for name, value in requested.items():
        if value is not None and name not in parameters:
            raise InvalidSettings(f"{card.pipeline} takes no {name}: leave it out")


def _check_required(settings: RenderSettings, card: ModelCard, parameters: Parameters) -> None:
    """Refuse a pipeline that needs an argument which the request does not hold."""
    required = _required_arguments(card.pipeline, parameters)
    unavailable = [name for name in required if name not in AVAILABLE]
    if unavailable:
        raise InvalidSettings(f"{card.pipeline} needs {', '.join(unavailable)}: {PYTHON_ONLY}")
    if "image" in required and not settings.image:
        raise InvalidSettings(f"{card.pipeline} starts from an image: give --image FILE")


def _required_arguments(pipeline: str, parameters: Parameters) -> list[str]:
    """Return the required arguments of a pipeline's call."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    by_name = {name for pattern, name in REQUIRED_BY_NAME if re.search(pattern, pipeline)}
    return [
        name
        for name, parameter in parameters.items()
        if name != "self"
        and parameter.kind not in variadic
        and (parameter.default is inspect.Parameter.empty or name in by_name)
    ]


def _check_guidance(settings: RenderSettings, card: ModelCard, pipeline: Any) -> None:
    """Refuse guidance values that a pipeline with one scale would ignore."""
    requested, negative = settings.guidance_scale, settings.negative_prompt
    parameters = inspect.signature(pipeline.__call__).parameters
    scale = parameters["guidance_scale"].default if requested is None else requested
    if uses_guidance(pipeline, card.index, scale):
        return
    if uses_guidance(pipeline, {**card.index, "is_distilled": False}, scale):
        if negative is not None or requested is not None:
            raise InvalidSettings(
                f"{card.source} is distilled, and {card.pipeline} guides no such model: "
                "leave --guidance-scale and --negative-prompt out"
            )
    elif negative is not None and "negative_prompt" in parameters:
        raise InvalidSettings(
            f"{card.pipeline} ignores a negative prompt with a guidance_scale of {scale:g}: "
            "give a --guidance-scale above 1, or leave --negative-prompt out"
        )


def uses_guidance(pipeline: Any, config: Mapping[str, Any], scale: float) -> bool:
    """Return True if a pipeline's class applies classifier-free guidance, and reads the negative prompt, at a scale.

    The class itself is asked, because some begin at a scale above 0 and others above 1.

    Args:
        pipeline: class of the pipeline.
        config: its config.
        scale: ``guidance_scale``.
    """
    asked = getattr(pipeline, "do_classifier_free_guidance", None)
    known = {"is_distilled": False, **config}
    state = {"guidance_scale": scale, "_guidance_scale": scale, "_audio_guidance_scale": 1.0}
    try:
        if isinstance(asked, property) and asked.fget is not None:
            return bool(asked.fget(SimpleNamespace(**state, config=SimpleNamespace(**known))))
    except AttributeError:  # it reads more than a class has
        pass
    return scale > 1


def _check_true_guidance(settings: RenderSettings, card: ModelCard, parameters: Parameters) -> None:
    """Refuse guidance values that a pipeline with two scales would ignore."""
    requested, negative = settings.true_cfg_scale, settings.negative_prompt
    scale = parameters["true_cfg_scale"].default if requested is None else requested
    if negative is not None and scale <= 1:
        raise InvalidSettings(
            f"{card.pipeline} ignores a negative prompt with a true_cfg_scale of {scale:g}: "
            "give --true-cfg-scale above 1"
        )
    if negative is None and requested is not None and requested > 1:
        raise InvalidSettings(
            f"{card.pipeline} ignores a true_cfg_scale of {requested:g} without a negative prompt: "
            "give --negative-prompt, at least ' '"
        )
    if settings.guidance_scale is not None and not _config_value(card, "guidance_embeds"):
        raise InvalidSettings(
            f"{card.transformer_class} of {card.source} ignores guidance_scale (guidance_embeds is off): "
            "give --true-cfg-scale and --negative-prompt"
        )


def _config_value(card: ModelCard, name: str) -> Any:
    """Return a value of the transformer's config, or the default of its class if the file has none."""
    import diffusers

    if name in card.transformer:
        return card.transformer.get(name)
    transformer_class = getattr(diffusers, card.transformer_class, None)
    if transformer_class is None:
        return None
    parameter = inspect.signature(transformer_class.__init__).parameters.get(name)
    return None if parameter is None else parameter.default
