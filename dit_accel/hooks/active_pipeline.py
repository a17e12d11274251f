"""Find the pipeline that is calling a transformer by walking up the call stack.

Several pipelines can share one transformer, because diffusers' `from_pipe` reuses components.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import nn

from dit_accel_pipelines import COMPONENTS

PIPELINES = (DiffusionPipeline, ModularPipeline)


def transformers_of(target: Any) -> dict[str, nn.Module]:
    """Return the transformers of a pipeline by component name, or a bare transformer itself."""
    if isinstance(target, nn.Module):
        return {"transformer": target}
    components = {name: getattr(target, name, None) for name in COMPONENTS}
    return {name: module for name, module in components.items() if isinstance(module, nn.Module)}


def pipeline_ref(target: Any) -> weakref.ref[Any] | None:
    """Return a weak reference to a pipeline, or to another object whose scheduler knows the steps.

    Returns:
        None for a bare transformer, and for an object that Python cannot refer to weakly.
    """
    has_steps = isinstance(target, PIPELINES) or getattr(target, "scheduler", None) is not None
    if isinstance(target, nn.Module) or not has_steps or not type(target).__weakrefoffset__:
        return None
    return weakref.ref(target)


def as_standard_pipeline(pipe: Any) -> Any:
    """Return a pipeline whose call is its denoising loop; None for a modular one."""
    return pipe if isinstance(pipe, DiffusionPipeline) else None


@torch.compiler.disable  # frames cannot be traced
def running_pipeline(transformers: Collection[nn.Module]) -> Any:
    """Return the nearest pipeline on the call stack that has one of these transformers, or None."""
    for values in _locals_of_methods():
        pipe = values["self"]
        if isinstance(pipe, PIPELINES) and _has_any(pipe, transformers):
            return pipe
    return None


@torch.compiler.disable
def is_running(transformer: nn.Module) -> bool:
    """Return True if the transformer's own forward is on the call stack of this thread."""
    code = inspect.unwrap(type(transformer).forward).__code__
    return any(
        frame.f_code is code and frame.f_locals.get("self") is transformer for frame in _frames()
    )


@torch.compiler.disable
def reported_guidance(pipe: Any) -> bool | None:
    """Return True if a running pipeline says that it does classifier-free guidance; None if it does not say.

    Some pipelines have a property for it, and others a local variable of their call.
    """
    name = "do_classifier_free_guidance"
    reported = getattr(pipe, name, None)
    reported = local_variable(pipe, name) if reported is None else reported
    return reported if isinstance(reported, bool) else None


@torch.compiler.disable
def running_guider() -> tuple[Any, str | None]:
    """Return the guider of a running modular pipeline and the prediction it requests, such as ``"pred_cond"``."""
    for values in _locals_of_methods():
        batch = values.get("guider_state_batch")
        guider = getattr(values.get("components"), "guider", None)
        if batch is not None and guider is not None:
            return guider, getattr(batch, guider._identifier_key, None)
    return None, None


@torch.compiler.disable
def local_variable(pipe: Any, name: str) -> Any:
    """Return a local variable of a running method of a pipeline, or None."""
    for values in _locals_of_methods():
        if values["self"] is pipe and name in values:
            return values[name]
    return None


def _has_any(pipe: Any, transformers: Collection[nn.Module]) -> bool:
    modules = transformers_of(pipe).values()
    plain = [getattr(module, "_orig_mod", module) for module in modules]  # torch.compile's wrapper
    return any(module is ours for module in plain for ours in transformers)


def _locals_of_methods() -> Iterator[Mapping[str, Any]]:
    """Yield the local variables of the methods on the call stack, the nearest first."""
    for frame in _frames():
        if frame.f_code.co_varnames[:1] == ("self",):
            values = frame.f_locals
            if "self" in values:
                yield values


def _frames() -> Iterator[FrameType]:
    """Yield the frames of the call stack, the nearest first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
