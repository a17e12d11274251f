"""Read the targets and profiles of the verbs, and leave a session on a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_accel import hooks
from dit_accel.errors import InvalidSettings
from dit_accel.guidance.perturbed_branch import PerturbedBranch
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.hooks.families import Family, find_family
from dit_accel.hooks.step_cache import takes_cache
from dit_accel.runtime.active_sessions import sessions_of
from dit_accel.runtime.levers import Levers
from dit_accel.runtime.presets import is_bundled_model
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.recipes import ModelTraits, depends_on_model, read_profile, task_of
from dit_accel.runtime.session import Quantization, Session


def profile_of(profile: Profile | str | Path | Mapping[str, Any] | None, target: Any) -> Profile:
    """Return the profile that a verb was given for a target.

    Raises:
        InvalidSettings: If it is invalid, or no profile.
    """
    if profile is None:
        return Profile()
    if isinstance(profile, str | Path):
        return read_profile(profile, _traits(target) if depends_on_model(profile) else None)
    if isinstance(profile, Mapping):
        return Profile.from_dict(profile)
    if isinstance(profile, Profile):
        return profile
    raise InvalidSettings(
        f"profile must be a Profile, a file, a recipe or a dictionary, got {type_name(profile)}"
    )


def _traits(target: Any) -> ModelTraits:
    """Return what decides the published recipe, or a preset, of a pipeline or a bare transformer."""
    family, transformers = check_target(target), transformers_of(target)
    first = next(iter(transformers.values()))
    traits = ModelTraits(
        family.name,
        sum(1 for _ in family.attention_modules(first)),
        device=next(first.parameters()).device.type,
        takes_cache=takes_cache(first, family) and getattr(target, "controlnet", None) is None,
        is_bundled=is_bundled_model(hooks.config_of(first)),
    )
    if target in transformers.values():
        return traits
    task = task_of(type(target).__name__, family.output)
    return dataclasses.replace(traits, transformers=len(transformers), task=task)


def type_name(value: object) -> str:
    """Return the name of a value's type for an error."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_target(target: Any, *, linear: bool = False) -> Family:
    """Return the family of a target after checking that all its processors can be redirected.

    Families with linear attention are unknown unless ``linear``.
    """
    transformers = transformers_of(target)
    if not transformers:
        raise InvalidSettings(
            f"{type(target).__name__} has no transformer: give a diffusers pipeline or a transformer"
        )
    for name, transformer in transformers.items():
        if hasattr(transformer, "_orig_mod"):
            raise InvalidSettings(
                f"{name} is a torch.compile'd module: enable dit_accel first, "
                "or compile with transformer.compile_repeated_blocks()"
            )
    families = [find_family(module, linear=linear) for module in transformers.values()]
    for transformer, family in zip(transformers.values(), families, strict=True):
        hooks.check_processors(transformer, family)
    return families[0]


def enabled_sessions(target: Any) -> Sequence[Session]:
    """Return the sessions of a target; refuse what can have none."""
    if not hasattr(target, "components") and not hasattr(target, "named_modules"):
        raise InvalidSettings(
            f"{type_name(target)} is no target: give a diffusers pipeline or a transformer"
        )
    return sessions_of(target)


def replace_sessions(
    target: Any,
    family: Family,
    sparse: Profile | None,
    guidance: PerturbedBranch | None,
    quantization: Quantization | None,
    levers: Levers | None,
) -> Session:
    """Install a new session on a target in place of those that were there.

    If it cannot be installed, those that were there stay.
    """
    before = sessions_of(target)
    for session in before:
        session.uninstall()
    try:
        if levers is not None:
            levers.check(transformers_of(target), getattr(target, "scheduler", None))
            if sparse is not None:
                levers.check_attention(sparse)
        return Session(target, family, sparse, guidance, quantization, levers)
    except BaseException:
        for session in before:
            session.install()
        raise
