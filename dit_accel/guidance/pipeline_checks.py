"""How pipelines combine predictions: what makes the result another than the formula of guidance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.guiders import ClassifierFreeGuidance

from dit_accel.hooks.active_pipeline import local_variable, running_guider
from dit_accel_pipelines import Family, Postprocess


def deviations(pipe: Any, family: Family) -> Iterator[str]:
    """Remarks on what a pipeline, which runs with classifier-free guidance, does to the guided prediction; of a
    modular one, which is no pipeline here, on its guider.
    """
    guider = running_guider()[0] if pipe is None else _guider_of(pipe)
    if guider is not None and not _is_plain(guider):
        yield (
            f"the pipeline's {type(guider).__name__} combines predictions otherwise than plain classifier-free "
            "guidance, and with them what perturbed guidance adds"
        )
    if pipe is None:
        return
    if getattr(pipe, "guidance_rescale", 0.0):
        yield "guidance_rescale of the pipeline also rescales what perturbed guidance adds"
    for process in family.postprocess:
        if _holds(pipe, process):
            yield f"the pipeline {process.description}, and with it what perturbed guidance adds"


def _guider_of(pipe: Any) -> Any:
    return local_variable(pipe, "guider") or getattr(pipe, "guider", None)


def _holds(pipe: Any, process: Postprocess) -> bool:
    if not process.switch:
        return True
    told = local_variable(pipe, process.switch)
    if told is None:
        told = pipe.config.get(process.switch, process.default)
    return bool(told)


def _is_plain(guider: Any) -> bool:
    return type(guider) is ClassifierFreeGuidance and not guider.guidance_rescale
