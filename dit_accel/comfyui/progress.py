"""ComfyUI's progress bar, memory and interrupt while a pipeline runs. Outside ComfyUI they do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dit_accel.hooks.active_pipeline import transformers_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def is_inside_comfyui() -> bool:
    """Return True if ComfyUI runs this process."""
    try:
        import comfy.model_management  # noqa: F401
    except ImportError:
        return False
    return True


def free_memory() -> None:
    """Let ComfyUI move its own models off the GPU, because a pipeline does not count as one of them."""
    if is_inside_comfyui():
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


@contextmanager
def report_progress(pipe: DiffusionPipeline, steps: int) -> Iterator[None]:
    """Move ComfyUI's progress bar with a pipeline's steps, and let its interrupt end the run.

    An interrupt ends the run before the next forward of a transformer.

    Args:
        pipe: The pipeline that runs inside the block.
        steps: Number of its steps.
    """
    if not is_inside_comfyui():
        yield
        return
    import comfy.model_management
    import comfy.utils

    bar = comfy.utils.ProgressBar(steps)

    def update_bar(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        step = getattr(pipe.scheduler, "step_index", None) or 0
        bar.update_absolute(min(step, steps), steps)

    with ExitStack() as hooks:
        for transformer in transformers_of(pipe).values():
            hooks.callback(transformer.register_forward_pre_hook(update_bar).remove)
        yield
    bar.update_absolute(steps, steps)
