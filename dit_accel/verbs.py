"""Add the verbs of `dit_accel.api` and `dit_accel.acceleration` to diffusers' pipelines without importing them."""

from __future__ import annotations

import importlib
from types import MethodType, ModuleType
from typing import Any

VERBS = {
    "enable_acceleration": "dit_accel.acceleration",
    "disable_acceleration": "dit_accel.acceleration",
    "enable_sparse_attention": "dit_accel.api",
    "disable_sparse_attention": "dit_accel.api",
    "enable_quantized_attention": "dit_accel.api",
    "disable_quantized_attention": "dit_accel.api",
    "enable_perturbed_guidance": "dit_accel.api",
    "disable_perturbed_guidance": "dit_accel.api",
    "attention_report": "dit_accel.api",
}
"""Module of each verb."""


class _Verb:
    """Descriptor that imports a verb when it is read from a pipeline or its class."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, pipe: Any, pipeline_class: type[Any]) -> Any:
        verb = _load(self._name)
        return verb if pipe is None else MethodType(verb, pipe)


def _load(name: str) -> Any:
    try:
        return getattr(importlib.import_module(VERBS[name]), name)
    except AttributeError as error:  # Python would hide it behind the pipeline's own __getattr__
        raise ImportError(f"cannot import dit_accel: {error}") from error


def add_verbs(pipeline_utils: ModuleType) -> None:
    """Add the verbs to diffusers' base class of pipelines, and so to all pipelines."""
    for name in VERBS:
        setattr(pipeline_utils.DiffusionPipeline, name, _Verb(name))
