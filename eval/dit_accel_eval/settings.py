"""What an evaluation compares with dense attention: ways to run it by name, and the noise floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dit_accel import Method, Profile, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.generation.render import Clip, render, render_with
from dit_accel.generation.settings import RenderSettings, attention_settings, build_profile
from dit_accel.generation.validation import validate
from dit_accel.runtime.profile import SUFFIXES
from dit_accel_eval.controls import OtherBackend, RoundedAttention

FLOORS: dict[str, tuple[str, Method]] = {
    "backend": ("floor: another backend", OtherBackend()),
    "bfloat16": ("floor: attention in bfloat16", RoundedAttention()),
}


@dataclass(frozen=True)
class Setting:
    """A way to run attention, as one column of an evaluation: its name, and what it sets in
    `RenderSettings`.
    """

    label: str
    changes: Mapping[str, Any] = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Setting:
        """``svg2:top_p=0.8:schedule.dense_steps=0:precision=int8``; a profile's file may stand for the
        method.

        Raises:
            InvalidSettings: for a part without ``=``, or a file that is no profile.
        """
        name, *parts = text.split(":")
        for part in parts:
            if "=" not in part:
                raise InvalidSettings(f"setting {text!r}: {part!r} is not KNOB=VALUE")
        knobs = dict(part.split("=", 1) for part in parts)
        given = {key: knobs.pop(key, None) for key in ("precision", "dense_precision", "guard")}
        path = Path(name) if Path(name).suffix in SUFFIXES else None
        method = None if path else name
        return cls(text, attention_settings(path, {"method": method, **given}, knobs))

    def of(self, case: RenderSettings) -> RenderSettings:
        """A clip's settings with this way to run attention."""
        return replace(case, **self.changes)

    def identity(self, case: RenderSettings) -> dict[str, Any]:
        """All that decides what `run` makes, but for weights and versions; files by what they hold."""
        settings = validate(self.of(case))[0]
        told = asdict(settings)
        for name in ("method", "knobs", "precision", "dense_precision", "guard"):
            del told[name]  # as values, whatever they were written like
        return {**told, "profile": build_profile(settings).to_dict()}

    def run(self, pipe: Any, case: RenderSettings) -> Clip:
        """Render a case in this way."""
        return render(pipe, validate(self.of(case))[0])


@dataclass(frozen=True)
class Floor(Setting):
    """Dense attention computed otherwise: what dense differs from itself by."""

    method: Method = field(kw_only=True)

    def identity(self, case: RenderSettings) -> dict[str, Any]:
        return {**asdict(validate(case.as_dense())[0]), "floor": self.label}

    def run(self, pipe: Any, case: RenderSettings) -> Clip:
        settings, _ = validate(case.as_dense())
        everywhere = Schedule(dense_steps=0.0, min_tokens=0)
        return render_with(pipe, settings, Profile(self.method, everywhere))


def floors(names: str, dtype: str) -> list[Setting]:
    """Floors by name, separated by commas; ``auto`` is bfloat16 for float32 pipelines, else another backend.

    Raises:
        InvalidSettings: for a name that there is not.
    """
    if names == "none":
        return []
    if names == "auto":
        names = "bfloat16" if dtype == "float32" else "backend"
    for name in names.split(","):
        if name not in FLOORS:
            raise InvalidSettings(
                f"unknown floor {name!r}: choose from auto, none, {', '.join(FLOORS)}"
            )
    return [Floor(FLOORS[name][0], {}, method=FLOORS[name][1]) for name in names.split(",")]
