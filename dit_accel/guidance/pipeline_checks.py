"""Checks for pipelines that change the guided prediction, so that the result differs from guidance's formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dit_accel.hooks.active_pipeline import local_variable, running_guider
from dit_accel_pipelines import Family, Postprocess


def describe_deviations(pipe: Any, family: Family) -> Iterator[str]:
    """Yield a remark for each way in which a pipeline changes the guided prediction.

    Args:
        pipe: A pipeline that runs with classifier-free guidance. None for a modular pipeline, whose guider is found
            on the call stack.
        family: The family of its transformer.
    """
    guider = running_guider()[0] if pipe is None else _find_guider(pipe)
    if guider is not None and not _is_plain_cfg(guider):
        yield (
            f"the pipeline's {type(guider).__name__} combines predictions differently from plain classifier-free "
            "guidance, which also changes what perturbed guidance adds"
        )
    if pipe is None:
        return
    if getattr(pipe, "guidance_rescale", 0.0):
        yield "guidance_rescale of the pipeline also rescales what perturbed guidance adds"
    for process in family.postprocess:
        if _is_switched_on(pipe, process):
            yield f"the pipeline {process.description}, which also changes what perturbed guidance adds"


def _find_guider(pipe: Any) -> Any:
    return local_variable(pipe, "guider") or getattr(pipe, "guider", None)


def _is_switched_on(pipe: Any, process: Postprocess) -> bool:
    if not process.switch:
        return True
    switch = local_variable(pipe, process.switch)
    if switch is None:
        switch = pipe.config.get(process.switch, process.default)
    return bool(switch)


def _is_plain_cfg(guider: Any) -> bool:
    from diffusers.guiders import ClassifierFreeGuidance

    return type(guider) is ClassifierFreeGuidance and not guider.guidance_rescale
