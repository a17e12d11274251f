"""What a render is asked for: its settings, and how texts become them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dit_accel.core.precision import check_precision_name
from dit_accel.core.schedule import Guard, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import TINY_WORLD
from dit_accel.generation.placement import LoadOptions
from dit_accel.io.parsing import parsed, parsed_knobs
from dit_accel.runtime.profile import Profile, method_of
from dit_accel_assets.world import SIZES

TINY_WORLD_DEFAULTS = {"steps": 25, "guidance_scale": 1.0, "size": "show"}


@dataclass(frozen=True)
class RenderSettings:
    """Everything that decides what a render makes. None leaves a value to the pipeline.

    Attributes:
        prompt, negative_prompt: texts.
        model: ``tiny-world``, a folder, or a hub id.
        method: name of the attention method.
        knobs: knobs of the method, of the schedule as ``schedule.NAME`` and of the guard as
            ``guard.NAME``; texts or values.
        precision, dense_precision: of the sparse and of the dense calls.
        guard: ``off``, ``warn`` or ``on``.
        height, width, frames: pixels and number of frames.
        steps, guidance_scale, seed: of the denoising loop; the seed feeds a CPU generator, and PyTorch's own for
            schedulers that add noise.
        true_cfg_scale: of classifier-free guidance, of pipelines whose guidance_scale is an input of the model.
        pag_scale, heads, softness: of perturbed-attention guidance, as ``enable_perturbed_guidance`` takes
            them; there is none without a scale or heads. `check` replaces a head set's file by what is in it.
        fps: frames per second of the file.
        image: file of a picture to start from or to change, of pipelines that take one.
        device, dtype, loras, offload, vae_tiling, ulysses: how the pipeline is loaded, as in `LoadOptions`.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str = TINY_WORLD
    method: str = "svg-ear"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "full"
    dense_precision: str = "full"
    guard: str = "off"
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    pag_scale: float | None = None
    heads: str | Mapping[str, Any] | None = None
    softness: float | None = None
    seed: int = 0
    fps: int = 16
    device: str = "cpu"
    dtype: str = "float32"
    image: str | None = None
    loras: Sequence[str] = ()
    offload: str = "none"
    vae_tiling: bool = False
    ulysses: int = 1

    @property
    def load_options(self) -> LoadOptions:
        """How the pipeline is loaded."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(LoadOptions)}
        return LoadOptions(**own)

    def as_dense(self) -> RenderSettings:
        """The same clip, guidance included, with every call dense in full precision: what others are compared
        with.
        """
        return dataclasses.replace(
            self, method="dense", knobs={}, dense_precision="full", guard="off"
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RenderSettings:
        """Settings from a file's metadata.

        Raises:
            InvalidSettings: naming a key that is unknown or a value that does not fit.
        """
        return parsed(cls, values, "settings")


def build_profile(settings: RenderSettings) -> Profile:
    """How attention runs by some settings.

    Raises:
        InvalidSettings: for an unknown method or knob, or a value out of range.
    """
    knobs: dict[str, dict[str, Any]] = {"": {}, "schedule": {}, "guard": {}}
    for name, value in settings.knobs.items():
        part, _, knob = name.rpartition(".")
        if part not in knobs:
            raise InvalidSettings(f"unknown knob {name!r}: use KNOB, schedule.KNOB or guard.KNOB")
        knobs[part][knob] = value
    try:
        return Profile(
            method=method_of(settings.method, knobs[""]),
            schedule=parsed_knobs(Schedule, knobs["schedule"], "schedule knob"),
            precision=check_precision_name("precision", settings.precision),
            dense_precision=check_precision_name("dense_precision", settings.dense_precision),
            guard=parsed_knobs(Guard, {"mode": settings.guard, **knobs["guard"]}, "guard knob"),
        )
    except InvalidSettings:
        raise
    except ValueError as error:
        raise InvalidSettings(str(error)) from None


def knobs_of(assignments: tuple[str, ...]) -> dict[str, str]:
    """``KNOB=VALUE`` texts as a dictionary.

    Raises:
        InvalidSettings: for a text without ``=``.
    """
    knobs = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidSettings(f"--set takes KNOB=VALUE, got {text!r}")
        knobs[name.strip()] = value.strip()
    return knobs


def attention_settings(
    path: Path | None, given: Mapping[str, str | None], knobs: Mapping[str, Any]
) -> dict[str, Any]:
    """Method, knobs, precisions and guard of a render: what is given wins over the profile's file, and
    another method drops the profile's knobs of its own.

    Raises:
        InvalidSettings: as `Profile.load`.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    kept: dict[str, Any] = {"knobs": {}}
    if path:
        profile = Profile.load(path)
        if chosen.get("method") not in (None, profile.method.name):
            profile = profile.with_method(method_of(chosen["method"], {}))
        kept = profile.as_settings()
    return {**kept, **chosen, "knobs": {**kept["knobs"], **knobs}}


class Size(NamedTuple):
    """Pixels and number of frames; None leaves a value to the pipeline."""

    height: int | None
    width: int | None
    frames: int | None


def size_of(size: str | None, height: int | None, width: int | None, frames: int | None) -> Size:
    """The size that ``--size`` names, changed by the single options."""
    named = SIZES[size] if size else (None, None, None)
    given = zip((height, width, frames), named, strict=True)
    return Size(*(one if one is not None else default for one, default in given))
