"""What runs a transformer, as far up the Python stack as needed: `from_pipe` makes several pipelines of one."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import nn

from dit_accel_pipelines import COMPONENTS

PIPELINES = (DiffusionPipeline, ModularPipeline)


def transformers_of(target: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by component name, or a bare transformer itself."""
    if isinstance(target, nn.Module):
        return {"transformer": target}
    found = {name: getattr(target, name, None) for name in COMPONENTS}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def pipeline_ref(target: Any) -> weakref.ref[Any] | None:
    """A pipeline, or another object with a scheduler, which tells the steps; None of a bare transformer, and of an
    object that Python cannot refer to weakly.
    """
    tells = isinstance(target, PIPELINES) or getattr(target, "scheduler", None) is not None
    if isinstance(target, nn.Module) or not tells or not type(target).__weakrefoffset__:
        return None
    return weakref.ref(target)


def ordinary(pipe: Any) -> Any:
    """A pipeline whose call is its denoising loop; None of a modular one, whose blocks and guider know it."""
    return pipe if isinstance(pipe, DiffusionPipeline) else None


@torch.compiler.disable  # of a frame nothing can be traced
def running_pipeline(transformers: Collection[nn.Module]) -> Any:
    """The nearest pipeline, ordinary or modular, whose method runs, and that has one of these transformers; None:
    there is none.
    """
    for values in _locals_of_methods():
        found = values["self"]
        if isinstance(found, PIPELINES) and _has_any(found, transformers):
            return found
    return None


@torch.compiler.disable
def guidance_told_by(pipe: Any) -> bool | None:
    """Whether a running pipeline does classifier-free guidance, by its own word; None if it has none.

    Some keep it to themselves: then it is a local variable of the pipeline's call.
    """
    name = "do_classifier_free_guidance"
    told = getattr(pipe, name, None)
    told = local_of(pipe, name) if told is None else told
    return told if isinstance(told, bool) else None


@torch.compiler.disable
def running_guider() -> tuple[Any, str | None]:
    """The guider of a modular pipeline that runs, and the prediction it asks for, such as ``"pred_cond"``."""
    for values in _locals_of_methods():
        batch = values.get("guider_state_batch")
        guider = getattr(values.get("components"), "guider", None)
        if batch is not None and guider is not None:
            return guider, getattr(batch, guider._identifier_key, None)
    return None, None


@torch.compiler.disable
def local_of(pipe: Any, name: str) -> Any:
    """A local variable of a method of a pipeline that runs; None if there is none of this name."""
    for values in _locals_of_methods():
        if values["self"] is pipe and name in values:
            return values[name]
    return None


def _has_any(pipe: Any, transformers: Collection[nn.Module]) -> bool:
    found = transformers_of(pipe).values()
    plain = [getattr(module, "_orig_mod", module) for module in found]  # torch.compile's wrapper
    return any(module is ours for module in plain for ours in transformers)


def _locals_of_methods() -> Iterator[Mapping[str, Any]]:
    """Local variables of the methods that run, the nearest first."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            values = frame.f_locals
            if "self" in values:
                yield values
        frame = frame.f_back
