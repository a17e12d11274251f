"""Define the settings of a render and build them from texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dit_accel.core.levers import name_levers
from dit_accel.core.precision import check_dense_precision, check_precision_name
from dit_accel.core.schedule import Guard, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import TINY_WORLD, read_card
from dit_accel.generation.placement import LoadOptions
from dit_accel.io.parsing import parse_dataclass, parse_knobs
from dit_accel.runtime.presets import is_bundled_model, preset_profile
from dit_accel.runtime.profile import Profile, method_of, parse_levers
from dit_accel.runtime.recipes import (
    ModelTraits,
    depends_on_model,
    find_recipe,
    is_preset,
    read_profile,
    task_of,
)
from dit_accel_assets.sizes import SIZES

TINY_WORLD_DEFAULTS = {"steps": 25, "guidance_scale": 1.0, "size": "show"}


@dataclass(frozen=True)
class RenderSettings:
    """Everything that decides what a render makes. None leaves a value to the pipeline.

    Attributes:
        prompt: what the clip shows.
        negative_prompt: what it does not show.
        model: ``tiny-world``, a diffusers folder, or a hub id.
        method: name of the attention method.
        knobs: knobs of the method by name, of the schedule as ``schedule.NAME`` and of the guard as
            ``guard.NAME``; texts or values.
        precision: precision of sparse calls.
        dense_precision: precision of dense calls.
        guard: ``off``, ``warn`` or ``on``.
        levers: sections ``cache``, ``linears`` and ``compile`` of a profile, or None without any.
        preset: name and statement of the preset that attention and levers come from, or None.
        height: pixels.
        width: pixels.
        frames: number of frames.
        steps: denoising steps.
        guidance_scale: classifier-free guidance.
        true_cfg_scale: classifier-free guidance of pipelines whose guidance_scale is an input of the model.
        pag_scale: scale of perturbed guidance; without a scale and heads there is none.
        heads: perturbed heads, as ``enable_perturbed_guidance`` takes them. `validate` replaces the name of a
            head set's file by its content.
        softness: share of the perturbed attention, 0 to 1.
        seed: seed of the pipeline's CPU generator, and of PyTorch's own generators for schedulers that add noise.
        fps: frames per second of the file.
        device: as in `LoadOptions`, like the next five.
        dtype: dtype of the weights.
        image: image file to start from or to change.
        loras: LoRAs of the transformer.
        offload: which weights stay in CPU memory.
        vae_tiling: decode in tiles.
        ulysses: devices that split each clip.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str = TINY_WORLD
    method: str = "svg-ear"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "full"
    dense_precision: str = "full"
    guard: str = "off"
    levers: Mapping[str, Any] | None = None
    preset: Mapping[str, str] | None = None
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
        """Return how the pipeline is loaded."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(LoadOptions)}
        return LoadOptions(**values)

    @property
    def label(self) -> str:
        """Return the name of the preset, or else the method with the other levers, which tells it from plain dense."""
        if self.preset:
            return self.preset["name"]
        parts = name_levers(self.levers or {})
        if self.method == "dense" and self.dense_precision != "full":
            parts.append(f"{self.dense_precision} attention")
        return " + ".join([self.method, *parts])

    @property
    def is_guided(self) -> bool:
        """Return True if perturbed guidance is requested."""
        return self.pag_scale is not None or self.heads is not None

    def as_dense(self) -> RenderSettings:
        """Return the same clip with every call dense in full precision; guidance stays.

        This is what accelerated clips are compared with.
        """
        return dataclasses.replace(
            self,
            method="dense",
            knobs={},
            precision="full",
            dense_precision="full",
            guard="off",
            levers=None,
            preset=None,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RenderSettings:
        """Return the settings that a file's metadata holds.

        Raises:
            InvalidSettings: for an unknown key or an invalid value.
        """
        settings: RenderSettings = parse_dataclass(cls, values, "settings")
        return settings


def build_profile(settings: RenderSettings) -> Profile:
    """Return the profile that some settings describe: method, schedule, precisions and guard.

    Raises:
        InvalidSettings: for an unknown method or knob, or a value out of range.
    """
    knobs: dict[str, dict[str, Any]] = {"method": {}, "schedule": {}, "guard": {}}
    for name, value in settings.knobs.items():
        part, _, knob = name.partition(".")
        if part in ("schedule", "guard"):
            knobs[part][knob] = value
        else:
            knobs["method"][name] = value
    try:
        return Profile(
            method=method_of(settings.method, knobs["method"]),
            schedule=parse_knobs(Schedule, knobs["schedule"], "schedule knob"),
            precision=check_precision_name("precision", settings.precision),
            dense_precision=check_dense_precision("dense_precision", settings.dense_precision),
            guard=parse_knobs(Guard, {"mode": settings.guard, **knobs["guard"]}, "guard knob"),
            provenance={"preset": dict(settings.preset)} if settings.preset else {},
            **parse_levers(settings.levers or {}),
        )
    except InvalidSettings:
        raise
    except ValueError as error:
        raise InvalidSettings(str(error)) from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Return texts ``KNOB=VALUE`` as a dictionary.

    Raises:
        InvalidSettings: for a text without ``=``.
    """
    knobs = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InvalidSettings(f"knobs are written KNOB=VALUE, got {text!r}")
        if name in knobs:
            raise InvalidSettings(f"{name} is given twice: keep one")
        knobs[name] = value.strip()
    return knobs


def resolve_profile(source: str, settings: RenderSettings) -> str | Profile:
    """Return the source of a profile, with the profile in place of a preset and the recipe of ``METHOD:published``.

    Args:
        source: path of a file, or name of a preset or of a recipe.
        settings: model, device, size and steps of the render.

    Raises:
        InvalidSettings: if the method has no recipe for the model's family, or the model cannot be read.
    """
    if not depends_on_model(source):
        return source
    card = read_card(settings.model)
    traits = ModelTraits(
        card.family.name,
        card.family.attention_shape(card.transformer).layers,
        card.transformers,
        task_of(card.pipeline, card.output),
        settings.height,
        settings.width,
    )
    if not is_preset(source):
        return find_recipe(source, traits).name
    import diffusers

    from dit_accel.generation.forecast import count_tokens
    from dit_accel.hooks.step_cache import takes_cache

    if settings.model == TINY_WORLD:
        settings = with_tiny_world_defaults(settings)
    traits = dataclasses.replace(
        traits,
        tokens=count_tokens(settings, card),
        steps=settings.steps,
        device=settings.device.partition(":")[0],
        takes_cache=takes_cache(getattr(diffusers, card.transformer_class, None), card.family),
        is_bundled=is_bundled_model(card.transformer),
    )
    return preset_profile(source, traits)


def with_tiny_world_defaults(settings: RenderSettings) -> RenderSettings:
    """Return settings with the tiny world's size, steps and guidance where they have none."""
    height, width, frames = SIZES[str(TINY_WORLD_DEFAULTS["size"])]
    defaults = {
        "height": height,
        "width": width,
        "frames": frames,
        "steps": TINY_WORLD_DEFAULTS["steps"],
        "guidance_scale": TINY_WORLD_DEFAULTS["guidance_scale"],
    }
    missing = {k: v for k, v in defaults.items() if getattr(settings, k) is None}
    # The values of a dictionary have one type, the fields have several.
    return dataclasses.replace(settings, **missing)  # type: ignore[arg-type]


def attention_settings(
    source: str | Path | Profile | None,
    overrides: Mapping[str, str | None],
    knobs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return method, knobs, precisions, guard, levers and preset of a render as fields of `RenderSettings`.

    Args:
        source: a profile, its file, or the name of a recipe.
        overrides: method, precisions and guard that win over the profile; None leaves its value. Another method
            drops the knobs of the profile's method.
        knobs: knobs that win over the profile's.

    Raises:
        InvalidSettings: as `read_profile`, and for a knob that rules of the profile set.
    """
    chosen = {name: value for name, value in overrides.items() if value is not None}
    defaults: dict[str, Any] = {"knobs": {}}
    if source:
        profile = source if isinstance(source, Profile) else read_profile(source)
        if chosen.get("method") not in (None, profile.method.name):
            profile = profile.with_method(method_of(chosen["method"], {}))
        defaults = profile.as_settings()
        if chosen.get("guard") == "off":
            guarded = [name for name in defaults["knobs"] if name.startswith("guard.")]
            defaults["knobs"] = {k: v for k, v in defaults["knobs"].items() if k not in guarded}
        ruled = {name for rule in profile.schedule.rules for name in rule.knobs} & set(knobs)
        if ruled:
            raise InvalidSettings(
                f"rules of the profile set {', '.join(sorted(ruled))}, and they win over the value that is given "
                "beside it: change the rules in the file"
            )
        changed = ", ".join([*chosen, *knobs])
        if defaults["preset"] and changed:
            statement = f"{defaults['preset']['statement']}; then changed: {changed}"
            defaults["preset"] = {**defaults["preset"], "statement": statement}
    return {**defaults, **chosen, "knobs": {**defaults["knobs"], **knobs}}


class Size(NamedTuple):
    """Pixels and number of frames; None leaves a value to the pipeline."""

    height: int | None
    width: int | None
    frames: int | None


def resolve_size(
    size: str | None, height: int | None, width: int | None, frames: int | None
) -> Size:
    """Return a named size of the tiny world, changed by the values that are not None."""
    defaults = SIZES[size] if size else (None, None, None)
    overrides = zip((height, width, frames), defaults, strict=True)
    return Size(*(value if value is not None else default for value, default in overrides))
