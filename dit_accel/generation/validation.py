"""What is wrong with a request, told before any weight is loaded."""

from __future__ import annotations

import dataclasses

from dit_accel import hooks
from dit_accel.errors import InvalidSettings
from dit_accel.generation.call_checks import check_call
from dit_accel.generation.loading import TINY_WORLD, ModelCard, read_card
from dit_accel.generation.settings import TINY_WORLD_DEFAULTS, RenderSettings, build_profile
from dit_accel.guidance import ModelShape, PerturbedGuidance, check_family, resolve_heads
from dit_accel.io.parsing import parsed
from dit_accel_assets.world import SIZES


def check(settings: RenderSettings) -> tuple[RenderSettings, ModelCard]:
    """Check settings against the model's own JSON files and fill in the tiny world's defaults;
    loads no weights.

    Raises:
        InvalidSettings: with one line that says what to change.
    """
    build_profile(settings)
    settings.load_options.check()
    if settings.steps is not None and settings.steps < 1:
        raise InvalidSettings(f"steps must be at least 1, got {settings.steps}")
    if settings.fps < 1:
        raise InvalidSettings(f"fps must be at least 1, got {settings.fps}")
    if not 0 <= settings.seed < 2**63:
        raise InvalidSettings(f"seed must be in [0, 2**63), got {settings.seed}")
    card = read_card(settings.model)
    check_shared(settings, card)
    if settings.model == TINY_WORLD:
        settings = _with_tiny_world_defaults(settings)
    height, width, frames = settings.height, settings.width, settings.frames
    rule = card.sizes
    settings = with_heads(settings, card)
    check_call(settings, card)
    least = rule.first_frames or rule.frame_step
    complaint = rule.complaint(height or rule.multiple, width or rule.multiple, frames or least)
    if complaint:
        raise InvalidSettings(complaint)
    return settings, card


def check_shared(settings: RenderSettings, card: ModelCard) -> None:
    """What devices that share a clip cannot do.

    Raises:
        InvalidSettings: naming it.
    """
    guided = settings.pag_scale is not None or settings.heads is not None
    try:
        hooks.check_shared(settings.ulysses, guided, settings.guard)
    except RuntimeError as error:
        raise InvalidSettings(str(error)) from None
    if settings.ulysses > 1 and card.family.unshared:
        raise InvalidSettings(
            f"{card.pipeline} cannot share a clip ({card.family.unshared}): leave --context-parallel out"
        )


def with_heads(settings: RenderSettings, card: ModelCard) -> RenderSettings:
    """Perturbed guidance checked against the shape of the model, with the content of a head set's file."""
    if settings.pag_scale is None and settings.heads is None:
        if settings.softness is not None:
            raise InvalidSettings(
                "softness is one of perturbed guidance: give a pag scale or heads, too"
            )
        return settings
    check_family(card.family)
    shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    found = resolve_heads("all" if settings.heads is None else settings.heads, None, shape)
    given = {"scale": settings.pag_scale, "softness": settings.softness}
    chosen = {name: value for name, value in given.items() if value is not None}
    parsed(PerturbedGuidance, {**found.settings, **chosen}, "guidance")
    if isinstance(settings.heads, str) and settings.heads.endswith(".json"):
        return dataclasses.replace(settings, heads=found.to_dict())
    return settings


def _with_tiny_world_defaults(settings: RenderSettings) -> RenderSettings:
    height, width, frames = SIZES[str(TINY_WORLD_DEFAULTS["size"])]
    defaults = {
        "height": height,
        "width": width,
        "frames": frames,
        "steps": TINY_WORLD_DEFAULTS["steps"],
        "guidance_scale": TINY_WORLD_DEFAULTS["guidance_scale"],
    }
    missing = {k: v for k, v in defaults.items() if getattr(settings, k) is None}
    return dataclasses.replace(settings, **missing)  # type: ignore[arg-type]
