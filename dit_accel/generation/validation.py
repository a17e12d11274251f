"""Validate a request before any weights are loaded.

Checks run from the cheapest to the slowest: the settings alone, the model's JSON files, and the signature of the
pipeline's call, which imports diffusers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from dit_accel.errors import InvalidSettings
from dit_accel.generation.call_checks import check_call
from dit_accel.generation.loading import TINY_WORLD, ModelCard, read_card
from dit_accel.generation.settings import (
    RenderSettings,
    build_profile,
    with_tiny_world_defaults,
)
from dit_accel.guidance import ModelShape, PerturbedGuidance, check_family, make_head_set
from dit_accel.io.images import read_image
from dit_accel.io.parsing import parse_dataclass

# Beyond these a number is a mistake, and some encoders and schedulers fail late.
LARGEST = {
    **{"steps": 10_000, "fps": 1_000, "height": 16_384, "width": 16_384, "frames": 100_000},
    "ulysses": 1_024,
}
TEXTS = ("prompt", "negative_prompt", "model", "image")
# Text encoders read a few hundred words.
LONGEST_TEXT = 20_000
SCALES = ("guidance_scale", "true_cfg_scale", "pag_scale", "softness")


def validate(settings: RenderSettings) -> tuple[RenderSettings, ModelCard]:
    """Return settings with the tiny world's defaults filled in, and the card of their model.

    No weights are loaded.

    Raises:
        InvalidSettings: for settings that cannot work, in one line that says what to change.
    """
    settings, card = validate_with_card(settings)
    check_pipeline(settings, card)
    return settings, card


def check_pipeline(settings: RenderSettings, card: ModelCard) -> None:
    """Check the pipeline's call and the levers, which imports diffusers.

    Raises:
        InvalidSettings: as `validate`.
    """
    check_call(settings, card)
    if settings.levers:
        from dit_accel.generation.lever_checks import check_levers

        check_levers(settings, card)


def validate_with_card(settings: RenderSettings) -> tuple[RenderSettings, ModelCard]:
    """`validate` without the check of the pipeline's call, and without importing diffusers.

    Raises:
        InvalidSettings: as `validate`.
    """
    check_settings(settings)
    card = read_card(settings.model)
    check_sharing(settings, card)
    if settings.model == TINY_WORLD:
        settings = with_tiny_world_defaults(settings)
    settings = resolve_heads(settings, card)
    check_size(settings, card)
    return settings, card


def validate_batch(
    requests: Sequence[RenderSettings],
) -> list[tuple[RenderSettings, ModelCard]]:
    """`validate_with_card` for many requests; those that differ in their prompts alone share the other checks.

    Raises:
        InvalidSettings: as `validate`.
    """
    validated: list[tuple[RenderSettings, ModelCard]] = []
    for settings in requests:
        if validated and dataclasses.replace(settings, prompt=requests[0].prompt) == requests[0]:
            _check_texts(settings)
            first, card = validated[0]
            validated.append((dataclasses.replace(first, prompt=settings.prompt), card))
        else:
            validated.append(validate_with_card(settings))
    return validated


def check_settings(settings: RenderSettings) -> None:
    """Check what the settings alone can tell.

    Raises:
        InvalidSettings: naming the setting.
    """
    build_profile(settings)
    check_numbers(settings)
    _check_texts(settings)
    if not 0 <= settings.seed < 2**63:
        raise InvalidSettings(f"seed must be in [0, 2**63), got {settings.seed}")
    if settings.softness is not None and not settings.is_guided:
        raise InvalidSettings(
            "softness applies only to perturbed guidance: also pass --pag-scale or --heads."
        )
    if settings.image is not None:
        read_image(settings.image)
    settings.load_options.check()


def check_numbers(settings: RenderSettings) -> None:
    """Check that every number is finite and in its range.

    Raises:
        InvalidSettings: naming the number.
    """
    for name, largest in LARGEST.items():
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InvalidSettings(f"{name} must be at least 1, got {value}")
        if value is not None and value > largest:
            raise InvalidSettings(f"{name} must be at most {largest}, got {value}")
    for name in SCALES:
        value = getattr(settings, name)
        if value is not None and not math.isfinite(value):
            raise InvalidSettings(f"{name} must be a finite number, got {value}")


def _check_texts(settings: RenderSettings) -> None:
    """Refuse a prompt without words, and texts that no file can hold."""
    if not settings.prompt.strip():
        raise InvalidSettings("the prompt is empty: say what the clip shows")
    for name in TEXTS:
        text = getattr(settings, name)
        if text is None:
            continue
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidSettings(f"{name} is not valid Unicode: give it in UTF-8")
        if "\0" in text:
            raise InvalidSettings(f"{name} contains a null character: remove it")
        if len(text) > LONGEST_TEXT:
            raise InvalidSettings(
                f"{name} has {len(text)} characters: at most {LONGEST_TEXT} are accepted"
            )


def check_sharing(settings: RenderSettings, card: ModelCard) -> None:
    """Check that a clip can be split among devices, if it is to be.

    Raises:
        InvalidSettings: naming the setting or pipeline that excludes it.
    """
    if settings.ulysses == 1:
        return
    from dit_accel import hooks

    try:
        cached = "cache" in (settings.levers or {})
        hooks.check_shared(settings.ulysses, settings.is_guided, settings.guard, cached)
    except RuntimeError as error:
        raise InvalidSettings(str(error)) from None
    if card.family.context_parallel_error:
        raise InvalidSettings(
            f"{card.pipeline} cannot split a clip among devices ({card.family.context_parallel_error}): "
            "leave --context-parallel out"
        )


def check_size(settings: RenderSettings, card: ModelCard) -> None:
    """Check pixels and frames against the sizes that a model can make.

    Raises:
        InvalidSettings: naming the nearest sizes that work.
    """
    if card.output == "image" and settings.frames not in (None, 1):
        raise InvalidSettings(
            f"{card.pipeline} makes images: leave --frames out, got {settings.frames}"
        )
    rule = card.sizes
    error = rule.find_error(
        settings.height or rule.multiple,
        settings.width or rule.multiple,
        settings.frames or rule.first_frames or rule.frame_step,
    )
    if error:
        raise InvalidSettings(error)


def resolve_heads(settings: RenderSettings, card: ModelCard) -> RenderSettings:
    """Return settings whose head set's file is replaced by its content, checked against the model.

    Raises:
        InvalidSettings: for a family that cannot be guided, or heads or values that do not fit.
    """
    if not settings.is_guided:
        return settings
    check_family(card.family)
    shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    heads = make_head_set("all" if settings.heads is None else settings.heads, None, shape)
    requested = {"scale": settings.pag_scale, "softness": settings.softness}
    overrides = {name: value for name, value in requested.items() if value is not None}
    guidance = parse_dataclass(PerturbedGuidance, {**heads.settings, **overrides}, "guidance")
    check_effect(guidance, overrides, settings.steps)
    if isinstance(settings.heads, str) and settings.heads.endswith(".json"):
        return dataclasses.replace(settings, heads=heads.to_dict())
    return settings


def check_effect(
    guidance: PerturbedGuidance, requested: Mapping[str, float], steps: int | None
) -> None:
    """Check that requested guidance changes something.

    Args:
        guidance: all settings of guidance.
        requested: those that the request itself holds, not its head set.
        steps: number of steps, or None if the pipeline decides.

    Raises:
        InvalidSettings: for a scale or softness of 0, or an interval between two steps.
    """
    for name, value in requested.items():
        if value == 0:
            option = {"scale": "--pag-scale", "softness": "--softness"}[name]
            raise InvalidSettings(
                f"perturbed guidance with a {name} of 0 has no effect: give {option} above 0, or leave --pag-scale, "
                "--heads and --softness out"
            )
    is_on = guidance.scale > 0 and guidance.softness > 0
    if is_on and steps and not any(guidance.guides_step(step, steps) for step in range(steps)):
        raise InvalidSettings(
            f"guidance in the interval {guidance.interval} holds none of {steps} steps: give more --steps"
        )
