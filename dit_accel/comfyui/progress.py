"""ComfyUI's progress bar, previews, memory and interrupt while a pipeline runs. Outside ComfyUI they do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dit_accel.comfyui.previews import preview_steps
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
def report_progress(pipe: DiffusionPipeline, steps: int, height: int, width: int) -> Iterator[None]:
    """Move ComfyUI's progress bar with a pipeline's steps, show previews, and let its interrupt end the run.

    An interrupt ends the run before the next forward of a transformer.

    Args:
        pipe: The pipeline that runs inside the block.
        steps: Number of its steps.
        height, width: Pixels of its frames.
    """
    if not is_inside_comfyui():
        yield
        return
    import comfy.model_management
    import comfy.utils

    bar = comfy.utils.ProgressBar(steps)

    def update_bar(preview: Any = None) -> None:
        step = getattr(pipe.scheduler, "step_index", None) or 0
        bar.update_absolute(min(step, steps), steps, preview)

    def begin_forward(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        update_bar()

    with ExitStack() as hooks:
        hooks.enter_context(preview_steps(pipe, height, width, update_bar))
        for transformer in transformers_of(pipe).values():
            hooks.callback(transformer.register_forward_pre_hook(begin_forward).remove)
        yield
    bar.update_absolute(steps, steps)
