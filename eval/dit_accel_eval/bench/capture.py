"""Queries, keys and values of a running pipeline, kept in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit_accel import AttentionCall, Method, Profile, Schedule
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import load_pipeline
from dit_accel.generation.placement import torch_dtype
from dit_accel.generation.render import render_with, versions
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel_pipelines import TokenLayout

TENSORS = ("query", "key", "value")
FORMAT = "dit_accel capture 1"


@dataclass(frozen=True)
class Recorder(Method):
    """Runs every call dense and keeps the tensors of some.

    Attributes:
        layers, steps: which calls.
        branch: which forward of a step (``"cond"``, ...); None: all.
        dtype: what the tensors are kept in.
        taken: what was kept, by name.
    """

    name: ClassVar[str] = "recorder"
    source: ClassVar[str] = "-"

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    branch: str | None
    dtype: torch.dtype
    taken: dict[str, Tensor] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        wanted = call.context.layer in self.layers and call.context.step in self.steps
        if not wanted or self.branch not in (None, call.context.branch):
            return
        number = len(self.calls)
        for name in TENSORS:
            kept = getattr(call, name).to("cpu", self.dtype)
            self.taken[f"{number}.{name}"] = kept.contiguous().clone()
        self.calls.append(
            {**asdict(call.context), "scale": call.scale, "layout": asdict(call.layout)}
        )


def capture(
    settings: RenderSettings,
    layers: Sequence[int],
    steps: Sequence[int],
    branch: str | None,
    keep: str,
    out: Path,
) -> list[dict[str, Any]]:
    """Render once, dense, and write the tensors of some calls ``[B, S, H, D]``; returns what each is.

    Raises:
        InvalidSettings: for settings that do not work, or places that the run does not have.
    """
    settings, card = validate(settings.as_dense())
    check_writable(out)
    if not layers or not steps:
        raise InvalidSettings("nothing to capture: give at least one layer and one step")
    count = card.family.attention_shape(card.transformer).layers
    for name, places, end in (("layer", layers, count), ("step", steps, settings.steps)):
        wrong = [p for p in places if p < 0 or (end is not None and p >= end)]
        if wrong:
            raise InvalidSettings(
                f"no {name} {wrong[0]}: the run has {name}s 0 to {end and end - 1}"
            )
    recorder = Recorder(tuple(layers), tuple(steps), branch, torch_dtype(keep))
    pipe = load_pipeline(card, settings.load_options)
    render_with(pipe, settings, Profile(recorder, Schedule(dense_steps=0, min_tokens=0)))
    found = {(c["layer"], c["step"]) for c in recorder.calls}
    for place in ((layer, step) for layer in layers for step in steps):
        if place not in found:
            raise InvalidSettings(
                f"no call at layer {place[0]}, step {place[1]}, branch {branch or 'any'}: "
                "the run has fewer steps, or no such branch (try --branch all)"
            )
    about = {
        "format": FORMAT,
        "calls": json.dumps(recorder.calls),
        "settings": json.dumps(asdict(settings)),
        "versions": json.dumps(versions()),
    }
    with atomic_write(out) as temporary:
        save_file(recorder.taken, temporary, about)
    return recorder.calls


def read_capture(path: Path) -> Iterator[AttentionCall]:
    """The calls of a file, in the order of the run, in float32.

    Raises:
        InvalidSettings: for a file that is no capture.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise InvalidSettings(
                    f"{path} is no capture: make one with `dit-accel bench capture`"
                )
            for number, place in enumerate(json.loads(about["calls"])):
                layout = TokenLayout(**place.pop("layout"))
                tensors = {n: file.get_tensor(f"{number}.{n}").float() for n in TENSORS}
                scale = place.pop("scale")
                context = CallContext(**place)
                yield AttentionCall(**tensors, scale=scale, context=context, layout=layout)
    except (OSError, SafetensorError) as error:
        raise InvalidSettings(f"cannot read capture {path}: {error}") from None
