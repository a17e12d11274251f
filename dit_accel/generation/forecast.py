"""Predict before a render that no call will be sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_accel.core.schedule import crossover_tokens
from dit_accel.methods import Dense

if TYPE_CHECKING:
    from dit_accel.generation.loading import ModelCard
    from dit_accel.generation.settings import RenderSettings
    from dit_accel.runtime.profile import Profile


def predict_no_effect(settings: RenderSettings, card: ModelCard, profile: Profile) -> str | None:
    """Return why no call of a sparse method will be sparse; None if some may be, or for the dense method.

    Args:
        settings: Validated settings, with the size of the clip.
        card: Card of the model.
        profile: Profile that the attention runs by.
    """
    schedule, steps = profile.schedule, settings.steps
    if isinstance(profile.method, Dense):
        return None
    if steps is not None and schedule.step_is_dense(steps - 1, steps):
        return f"no call will be sparse: the schedule leaves all {steps} steps dense"
    tokens, least = count_tokens(settings, card), schedule.min_tokens
    pays = ""
    if least is None:
        least = crossover_tokens(settings.device.partition(":")[0])
        pays = ", where sparse attention begins to pay"
    if tokens is None or tokens >= least:
        return None
    return f"no call will be sparse: {tokens:,} tokens, fewer than {least:,}{pays}"


def find_few_tokens(settings: RenderSettings, card: ModelCard) -> str | None:
    """Return in words that a call has fewer tokens than sparse attention pays for, or None."""
    tokens, least = (
        count_tokens(settings, card),
        crossover_tokens(settings.device.partition(":")[0]),
    )
    if tokens is None or tokens >= least:
        return None
    return f"{tokens:,} tokens are fewer than {least:,}, where sparse attention begins to pay"


def count_tokens(settings: RenderSettings, card: ModelCard) -> int | None:
    """Return the number of tokens of a call, with the longest text, or None if the size is left to the pipeline."""
    frames = 1 if card.output == "image" else settings.frames
    if frames is None or settings.height is None or settings.width is None:
        return None
    layout = card.family.video_layout(
        frames, settings.height, settings.width, card.transformer, card.vae
    )
    return layout.visual_tokens + layout.text_tokens
