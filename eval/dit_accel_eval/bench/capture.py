"""Capture queries, keys and values of a running pipeline in a safetensors file, and read them back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dit_accel import AttentionCall, Method, Profile, Schedule
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings, first_line
from dit_accel.generation.loading import load_pipeline
from dit_accel.generation.placement import torch_dtype
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.reading import parse_json
from dit_accel_pipelines import TokenLayout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TENSORS = ("query", "key", "value")
LAYOUT = ("frames", "height", "width", "text_tokens", "text_first")
FORMAT = "dit_accel capture 1"


@dataclass(frozen=True)
class Recorder(Method):
    """A method that runs every call dense and keeps the tensors of selected calls.

    Attributes:
        layers: Layers to keep.
        steps: Denoising steps to keep.
        branch: Forward of a step to keep (``"cond"``, ...); None keeps all.
        dtype: dtype of the kept tensors.
        tensors: Kept tensors on the CPU, by ``NUMBER.NAME``.
        calls: Metadata of the kept calls.
    """

    name: ClassVar[str] = "recorder"
    source: ClassVar[str] = "-"

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    branch: str | None
    dtype: torch.dtype
    tensors: dict[str, Tensor] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        """Return None, because this method makes no plan."""

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        """Keep a selected call without its padding. Return None, so the call runs dense."""
        context = call.context
        if context.layer not in self.layers or context.step not in self.steps:
            return
        if self.branch not in (None, context.branch):
            return
        for sample in call.samples():
            number = len(self.calls)
            for name in TENSORS:
                tensor = getattr(sample, name).to("cpu", self.dtype)
                self.tensors[f"{number}.{name}"] = tensor.contiguous().clone()
            layout = {name: getattr(sample.layout, name) for name in LAYOUT}
            self.calls.append({**asdict(context), "scale": sample.scale, "layout": layout})


def capture(
    settings: RenderSettings,
    layers: Sequence[int],
    steps: Sequence[int],
    *,
    branch: str | None,
    dtype: str,
    out: Path,
) -> list[dict[str, Any]]:
    """Render once with dense attention and write the tensors ``[B, S, H, D]`` of some calls.

    Args:
        settings: settings of the render; its method is replaced by dense attention.
        layers, steps: indices of the calls to keep, from 0.
        branch: forward of a step to keep; None keeps all.
        dtype: name of the dtype of the kept tensors.
        out: safetensors file to write.

    Returns:
        The metadata of each call.

    Raises:
        InvalidSettings: for invalid settings, or a layer, step or branch that the run does not have.
    """
    from dit_accel.generation.render import render_with

    settings, card = validate(settings.as_dense())
    warn_unreadable([settings.prompt], settings.model)
    check_writable(out)
    if not layers or not steps:
        raise InvalidSettings("nothing to capture: give at least one layer and one step")
    check_indices("layer", layers, card.family.attention_shape(card.transformer).layers)
    check_indices("step", steps, settings.steps)
    recorder = Recorder(tuple(layers), tuple(steps), branch, torch_dtype(dtype))
    pipe = load_pipeline(card, settings.load_options)
    render_with(pipe, settings, Profile(recorder, Schedule(dense_steps=0, min_tokens=0)))
    check_captured(recorder)
    write_capture(recorder, settings, out)
    return recorder.calls


def check_indices(name: str, indices: Sequence[int], count: int | None) -> None:
    """Check that all indices are in the run; ``count`` is None if their number is unknown.

    Raises:
        InvalidSettings: for an index that is not.
    """
    for index in indices:
        if index < 0 or (count is not None and index >= count):
            last = "..." if count is None else count - 1
            raise InvalidSettings(f"no {name} {index}: the run has {name}s 0 to {last}")


def check_captured(recorder: Recorder) -> None:
    """Check that every selected layer and step was captured.

    Raises:
        InvalidSettings: for a layer and step without a call.
    """
    captured = {(call["layer"], call["step"]) for call in recorder.calls}
    for layer in recorder.layers:
        for step in recorder.steps:
            if (layer, step) not in captured:
                raise InvalidSettings(
                    f"no call at layer {layer}, step {step}, branch {recorder.branch or 'any'}: "
                    "the run has fewer steps, or no such branch (try --branch all)"
                )


def write_capture(recorder: Recorder, settings: RenderSettings, out: Path) -> None:
    """Write the captured tensors, with the settings and versions of the run as metadata."""
    from safetensors.torch import save_file

    from dit_accel.generation.identity import versions

    metadata = {
        "format": FORMAT,
        "calls": json.dumps(recorder.calls),
        "settings": json.dumps(asdict(settings)),
        "versions": json.dumps(versions()),
    }
    with atomic_write(out) as temporary:
        save_file(recorder.tensors, temporary, metadata)


def read_capture(path: Path) -> Iterator[AttentionCall]:
    """Yield the calls of a capture in the order of the run, in float32.

    Raises:
        InvalidSettings: for a file that is not a capture.
    """
    from safetensors import SafetensorError, safe_open

    metadata = read_metadata(path)
    try:
        with safe_open(path, "pt") as file:
            for number, record in enumerate(parse_json(metadata["calls"])):
                sizes, scale = record.pop("layout"), record.pop("scale")
                layout = TokenLayout(**{name: sizes[name] for name in LAYOUT})
                tensors = {n: file.get_tensor(f"{number}.{n}").float() for n in TENSORS}
                yield AttentionCall(
                    **tensors, scale=scale, context=CallContext(**record), layout=layout
                )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidSettings(f"cannot read capture {path}: {first_line(error)}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a capture without reading its tensors.

    Raises:
        InvalidSettings: for a file that is not a capture.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InvalidSettings(f"cannot read capture {path}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise InvalidSettings(f"{path} is not a capture: make one with `dit-accel bench capture`")
    return metadata
