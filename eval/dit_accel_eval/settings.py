"""Settings that an evaluation compares with dense attention, and the noise floor."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel import Profile, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import (
    RenderSettings,
    attention_settings,
    build_profile,
    parse_assignments,
    resolve_profile,
)
from dit_accel.generation.validation import validate
from dit_accel.runtime.profile import SUFFIXES
from dit_accel.runtime.recipes import is_known
from dit_accel_eval.noise_floor import OtherBackend, RoundedAttention

if TYPE_CHECKING:
    from dit_accel.generation.render import Clip

WARM_UP_STEPS = 2
ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)


@dataclass(frozen=True)
class Setting:
    """A way to run attention.

    Attributes:
        label: Name in tables and records. Each label is warmed up once.
        profile: Profile that the attention runs by.
    """

    label: str
    profile: Profile = field(compare=False)

    @classmethod
    def parse(cls, text: str, case: RenderSettings | None = None) -> Setting:
        """Read a method, the file of a profile, a preset or a recipe, then ``:KNOB=VALUE`` for each knob to change.

        Example: ``svg2:top_p=0.8:schedule.dense_steps=0:precision=int8``, or ``svg2:published:top_p=0.8``.

        Args:
            text: the setting.
            case: model, size and steps, which decide a preset and the recipe of ``METHOD:published``; without them
                the recipe is refused.

        Raises:
            InvalidSettings: for a part without ``=``, an unknown method or knob, or an invalid profile.
        """
        if not text.isprintable():
            raise InvalidSettings(
                f"setting {text!a} has characters that cannot be printed: rename the file"
            )
        name, *parts = text.split(":")
        if parts and is_known(f"{name}:{parts[0]}"):
            name = f"{name}:{parts.pop(0)}"
        for part in parts:
            if "=" not in part:
                raise InvalidSettings(f"setting {text!r}: {part!r} is not KNOB=VALUE, nor a recipe")
        knobs = parse_assignments(parts)
        modes = {key: knobs.pop(key, None) for key in ("precision", "dense_precision", "guard")}
        source: Any = name if is_known(name) or Path(name).suffix in SUFFIXES else None
        method = None if source else name
        source = resolve_profile(source, case) if source and case else source
        changes = attention_settings(source, {"method": method, **modes}, knobs)
        return Setting(text, build_profile(RenderSettings("", **changes)))

    def identity(self, case: RenderSettings) -> dict[str, Any]:
        """Return everything that decides a render, except weights and versions.

        Raises:
            InvalidSettings: for a clip that cannot be rendered with the profile.
        """
        request = asdict(validate(case)[0])
        for name in ("method", "knobs", "precision", "dense_precision", "guard"):
            del request[name]
        return {**request, "profile": self.profile.to_dict()}

    def render(self, pipe: Any, case: RenderSettings) -> Clip:
        """Render a clip."""
        from dit_accel.generation.render import render_with

        return render_with(pipe, validate(case)[0], self.profile)

    def warm_up(self, pipe: Any, case: RenderSettings) -> None:
        """Render two sparse steps without a cache, because the first run of a kind takes longer than the later ones.

        A cache would skip, or refuse another number of steps. Compiled blocks also see a longer prompt, because some
        are compiled again for a second length.
        """
        from dit_accel.generation.render import render_with

        schedule = replace(self.profile.schedule, dense_steps=0.0)
        short = replace(validate(case)[0], steps=WARM_UP_STEPS)
        longer = [replace(short, prompt=f"{short.prompt} {short.prompt}")]
        with warnings.catch_warnings():
            # The bundled model cannot read the longer prompt.
            warnings.simplefilter("ignore")
            for request in [short, *(longer if self.profile.compile else [])]:
                render_with(pipe, request, replace(self.profile, schedule=schedule, cache=None))


@dataclass(frozen=True)
class Floor(Setting):
    """Dense attention computed in another way: the difference that dense attention has from itself."""

    def identity(self, case: RenderSettings) -> dict[str, Any]:
        return {**asdict(validate(case.as_dense())[0]), "floor": self.label}


FLOORS = {
    "backend": Floor("floor: another backend", Profile(OtherBackend(), ALL_SPARSE)),
    "bfloat16": Floor("floor: attention in bfloat16", Profile(RoundedAttention(), ALL_SPARSE)),
}


def floors(names: str, dtype: str) -> list[Setting]:
    """Return noise floors by comma-separated names.

    Args:
        names: ``backend``, ``bfloat16``, both, ``none``, or ``auto``: bfloat16 for float32 pipelines, else backend.
        dtype: Type of the pipeline.

    Raises:
        InvalidSettings: for an unknown name.
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
    return [FLOORS[name] for name in names.split(",")]
