"""Presets: settings of attention and of the step cache by name, chosen by rules for the model and the run at hand.

The rules are not measured on any large model, and every preset says so. For the bundled model, a preset is a profile
that was measured on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dit_accel.core.caches import FirstBlockCache
from dit_accel.core.schedule import Rule, Schedule, crossover_tokens
from dit_accel.methods import Dense, SVGEar
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.tuned_steps import other_steps
from dit_accel_assets import profiles, tiny_world_path

if TYPE_CHECKING:
    from dit_accel.runtime.recipes import ModelTraits

MIN_STEPS = 12
"""Runs with fewer steps have no cache, because their steps are too different."""

DENSE_STEPS = 2
"""Number of first steps that stay dense in every run, also in one of four steps."""

SIZES = (
    *("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "freq_dim"),
    *("text_dim", "in_channels", "rope_max_seq_len"),
)
"""Sizes that tell the bundled model from others."""


@dataclass(frozen=True)
class Preset:
    """Rules of one preset.

    Attributes:
        about: Sentence that says what it is for.
        density: Density of ``svg-ear``.
        threshold: Threshold of the first-block cache.
    """

    about: str
    density: float
    threshold: float

    def describe(self, name: str) -> dict[str, Any]:
        """Return the rules and the statement as plain values."""
        return {
            "name": name,
            "about": self.about,
            "attention": f"svg-ear density={self.density}, with the first fifth of the steps dense, and at least "
            f"{DENSE_STEPS}; dense where sequences are too short to pay on the device, and in runs of two steps",
            "cache": f"first-block threshold={self.threshold}, from {MIN_STEPS} steps; below, and for models that take "
            "no cache of diffusers, none",
            "measured": NOT_MEASURED,
            "bundled": describe_measured(read_shipped(name)),
        }


NOT_MEASURED = (
    "not measured on any pretrained model; diffusers' own default of the threshold is 0.05"
)

PRESETS: Mapping[str, Preset] = {
    "quality": Preset("Stay near the dense clip.", density=0.3, threshold=0.05),
    "balanced": Preset("Trade a little nearness for speed.", density=0.15, threshold=0.08),
    "fast": Preset("Look like the dense clip, not be near it.", density=0.1, threshold=0.12),
}


def preset_profile(name: str, model: ModelTraits | None = None) -> Profile:
    """Return the profile of a preset for a model and a run, as far as they are known.

    Its ``provenance["preset"]`` holds the name and a statement: what was chosen, why, and what was measured. What is
    unknown here is decided in the run: the schedule keeps short sequences dense, and the cache rests in short runs.

    Args:
        name: A key of `PRESETS`.
        model: The model, the size of its clips and its number of steps.

    Example:
        >>> preset_profile("balanced", ModelTraits("wan", steps=4, tokens=500, device="cpu")).method
        Dense()
    """
    is_bundled = model is not None and model.is_bundled
    base = read_shipped(name) if is_bundled else _general(PRESETS[name])
    made_of = describe_measured(base) if is_bundled else f"rules, {NOT_MEASURED}"
    no_cache = model and _cache_reason(base, model)
    no_sparse = model and _attention_reason(model)
    profile = replace(base, cache=None) if no_cache else base
    profile = profile.with_method(Dense()) if no_sparse else profile
    nothing = "nothing can pay here, so it runs dense" if no_cache and no_sparse else None
    other = other_steps(profile, model.steps) if model else None
    parts = [part for part in (nothing, no_cache, no_sparse, made_of, other) if part]
    return with_statement(profile, name, f"preset {name}: {'; '.join(parts)}")


def _cache_reason(base: Profile, model: ModelTraits) -> str | None:
    """Return why a run has no cache; None if it has one, or if its number of steps is unknown."""
    if not model.takes_cache:
        return "no cache, because the model takes none of diffusers' that fits"
    if base.cache is not None and base.cache.rests(model.steps):
        return f"no cache, because {model.steps} steps are fewer than {base.cache.min_steps}"
    return None


def _attention_reason(model: ModelTraits) -> str | None:
    """Return why a run has no sparse attention; None if it has, or if its size is unknown."""
    if model.steps is not None and model.steps <= DENSE_STEPS:
        return f"no sparse attention, because the first {DENSE_STEPS} steps stay dense"
    if model.tokens is None or model.device is None:
        return None
    least = crossover_tokens(model.device)
    if model.tokens >= least:
        return None
    return f"no sparse attention, because {model.tokens:,} tokens are fewer than {least:,}, where it begins to pay"


def with_statement(profile: Profile, name: str, statement: str) -> Profile:
    """Return a profile whose provenance holds the statement of a preset."""
    preset = {"name": name, "statement": statement}
    return replace(profile, provenance={**profile.provenance, "preset": preset})


def with_changes(profile: Profile, given: Sequence[str]) -> Profile:
    """Return the profile of a verb for attention alone, whose statement tells what is not as in its preset.

    Args:
        profile: Profile with the changes. Its levers besides attention are left out.
        given: Names of the settings that were given beside it.
    """
    preset = profile.provenance.get("preset")
    parts = [f"then changed: {', '.join(given)}"] if given else []
    parts += [f"without its {', '.join(profile.levers())}"] if profile.has_levers else []
    if preset is None or not parts:
        return profile
    return with_statement(profile, preset["name"], "; ".join([preset["statement"], *parts]))


def without_cache(profile: Profile, reason: str) -> Profile:
    """Return the profile of a preset without its cache, which the model does not take after all."""
    preset = profile.provenance["preset"]
    statement = f"{preset['statement']}; no cache, because {reason}"
    return with_statement(replace(profile, cache=None), preset["name"], statement)


def is_bundled_model(config: Mapping[str, Any]) -> bool:
    """Return True if the sizes of a transformer are those of the bundled model."""
    path = tiny_world_path() / "transformer" / "config.json"
    bundled = json.loads(path.read_text(encoding="utf-8"))
    return all(config.get(name) == bundled[name] for name in SIZES)


def read_shipped(name: str) -> Profile:
    """Return the profile of a preset that was measured on the bundled model."""
    return Profile.load(profiles()[name])


def _general(preset: Preset) -> Profile:
    schedule = Schedule(rules=(Rule(steps=f"0-{DENSE_STEPS - 1}", dense=True),))
    cache = FirstBlockCache(threshold=preset.threshold, min_steps=MIN_STEPS)
    return Profile(SVGEar(density=preset.density), schedule, cache=cache)


def describe_measured(profile: Profile) -> str:
    """Return what was measured of a shipped profile, by its provenance: that of `tune`, or of an evaluation."""
    made = profile.provenance
    figures = made.get("measured", made)
    if "psnr" not in figures:
        return "chosen for the bundled model, and not measured"
    how = f"tuned to {made['promise']}, and measured" if "promise" in made else "measured"
    size = f"{made['width']}x{made['height']}x{made['frames']}, {made['steps']} steps"
    return (
        f"{how} on the bundled model at {size}: {figures['psnr']['mean']:.1f} dB PSNR to dense and "
        f"{figures['speedup']['median']:.2f} times as fast, over {made['clips']} clips"
    )
