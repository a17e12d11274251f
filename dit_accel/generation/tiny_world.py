"""Load the bundled model, and warn of prompts that it cannot read."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dit_accel.generation.loading import TINY_WORLD, load_pipeline, read_card
from dit_accel_assets import tiny_world_path
from dit_accel_assets.world import parse_caption

if TYPE_CHECKING:
    from diffusers import WanPipeline

GRAMMAR = (
    "it reads 'a COLOUR SHAPE MOTION on a BACKGROUND background', such as 'a red circle moving left on a black "
    "background'"
)


def warn_unreadable(prompts: Sequence[str], model: str) -> None:
    """Warn once if the model is the bundled one and some prompts are no captions of the tiny world.

    Args:
        prompts: all prompts of a command or a call.
        model: name, folder or hub id of the model.
    """
    if model not in (TINY_WORLD, str(tiny_world_path())):
        return
    unreadable = [prompt for prompt in prompts if parse_caption(prompt) is None]
    if unreadable:
        first = unreadable[0][:60]
        counted = f"{len(unreadable)} of {len(prompts)} prompts, such as {first!r}"
        which = repr(first) if len(prompts) == 1 else counted
        warnings.warn(
            f"tiny-world cannot read {which}, so what it makes means nothing: {GRAMMAR}",
            stacklevel=3,
        )


def load_tiny_world() -> WanPipeline:
    """Load the bundled model, a small video model of coloured shapes that move.

    It reads captions of one or two objects, such as ``"a red circle moving up and a blue square standing still on a
    navy background"``. A call with another prompt gives a warning. `dit_accel_assets.world` lists the words, and
    `dit_accel_assets.sizes` the sizes that it was made for.

    Returns:
        A pipeline of diffusers in float32 on the CPU.

    Raises:
        RunFailed: If files of the package are damaged or missing.

    Example:
        >>> pipe = dit_accel.load_tiny_world()
        >>> size = {"height": 256, "width": 256, "num_frames": 49}
        >>> pipe("a red circle moving left on a black background", guidance_scale=1.0, **size)
    """
    pipe: Any = load_pipeline(read_card(TINY_WORLD))
    check_inputs = pipe.check_inputs

    @functools.wraps(check_inputs)
    def check_and_warn(prompt: Any, *others: Any, **named: Any) -> None:
        check_inputs(prompt, *others, **named)
        prompts = [prompt] if isinstance(prompt, str) else prompt or []
        warn_unreadable(prompts, TINY_WORLD)

    pipe.check_inputs = check_and_warn
    return pipe
