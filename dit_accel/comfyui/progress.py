"""What the ComfyUI around us offers while a pipeline runs: progress and interrupt. Without it, nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import DiffusionPipeline

from dit_accel.hooks.active_pipeline import transformers_of


def inside_comfyui() -> bool:
    """Whether ComfyUI runs us."""
    try:
        import comfy.model_management  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def watched(pipe: DiffusionPipeline, steps: int) -> Iterator[None]:
    """ComfyUI's progress bar follows the pipeline's steps, and its interrupt ends the run before the next
    forward of a transformer.
    """
    if not inside_comfyui():
        yield
        return
    import comfy.model_management
    import comfy.utils

    bar = comfy.utils.ProgressBar(steps)

    def look(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        step = getattr(pipe.scheduler, "step_index", None) or 0
        bar.update_absolute(min(step, steps), steps)

    with ExitStack() as stack:
        for transformer in transformers_of(pipe).values():
            stack.callback(transformer.register_forward_pre_hook(look).remove)
        yield
    bar.update_absolute(steps, steps)
