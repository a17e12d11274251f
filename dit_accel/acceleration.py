"""The verb for all levers of a profile: attention, step cache, linear layers and compilation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dit_accel.core.caches import MagCache
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.runtime.active_sessions import session_of, sessions_of
from dit_accel.runtime.handles import AccelerationHandle
from dit_accel.runtime.levers import Levers
from dit_accel.runtime.presets import without_cache
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.session import Session
from dit_accel.targets import check_target, enabled_sessions, profile_of, replace_sessions


def enable_acceleration(
    target: Any, profile: Profile | str | Path | Mapping[str, Any]
) -> AccelerationHandle:
    """Apply everything that a profile sets to a pipeline or a bare transformer.

    These are its attention, as `enable_sparse_attention` takes it, its step cache, its linear layers and the
    compilation of its blocks. Acceleration that was enabled before is replaced. Quantized attention and guidance stay,
    and the verbs can be called in any order.

    Both transformers of a pipeline with two experts get every lever. A cache gets a state of its own for each branch,
    also for the perturbed forward of guidance, which is skipped together with the clean one. The original weights of
    changed linear layers are kept in CPU memory, because quantization loses bits.

    Args:
        target: A pipeline, standard or modular, or a transformer module.
        profile: The name of a preset, ``"quality"``, ``"balanced"`` or ``"fast"``, or that of a published recipe; a
            profile, its YAML or JSON file, or its content. A preset leaves out its cache if the model takes none.

    Returns:
        A handle. Its ``close`` and ``disable_acceleration`` undo everything.

    Raises:
        InvalidSettings: If the profile is invalid, or a lever does not work on the model. The pipeline is unchanged
            then.
        UnknownFamily: If no family declares the transformer.
        UnsupportedProcessor: If the code of a processor cannot be redirected. The pipeline is unchanged then.

    Example:
        >>> pipe.enable_acceleration("balanced")
        >>> video = pipe("a red fox in the snow").frames[0]
        >>> print(pipe.attention_report())
        >>> pipe.disable_acceleration()
    """
    chosen = profile_of(profile, target)
    try:
        return _enable(target, chosen, calibrating=False)
    except InvalidSettings as error:
        if chosen.cache is None or "preset" not in chosen.provenance:
            raise
        return _enable(target, without_cache(chosen, str(error)), calibrating=False)


def disable_acceleration(target: Any) -> None:
    """End acceleration. Quantized attention and guidance stay. Without acceleration nothing happens.

    Sparse attention that acceleration replaced is enabled again, and sparse attention that was enabled after it stays.
    When nothing is enabled any more, the pipeline is exactly what it was: its processors, its hooks, its forwards, and
    every bit of its weights.

    Example:
        >>> pipe.disable_acceleration()
    """
    for session in enabled_sessions(target):
        session.end_levers()


def calibrate_mag_cache(
    target: Any,
    profile: Profile | str | Path | Mapping[str, Any],
    run: Callable[[], object],
) -> Profile:
    """Measure the ratios that MagCache needs, under the attention and the linear layers of a profile.

    The ratios are those of the magnitudes of consecutive residuals (arXiv 2506.09045, equation 4), in the first branch
    of each transformer. The run skips nothing.

    Args:
        target: A pipeline, standard or modular, or a transformer module.
        profile: A profile whose cache is ``magcache``, with or without ratios.
        run: Function that runs the pipeline once, with the scheduler, the number of steps and the size that later runs
            have. Some pipelines, such as Flux, shift their timesteps by the size.

    Returns:
        The profile with ratios, their number of steps and their timesteps.

    Raises:
        InvalidSettings: If the cache of the profile is another one.
        RunFailed: If no forward of a transformer ran.

    Example:
        >>> profile = {"cache": {"kind": "magcache", "threshold": 0.1}}
        >>> profile = calibrate_mag_cache(pipe, profile, lambda: pipe("a red fox", num_inference_steps=30))
        >>> profile.save("fox.yaml")
    """
    chosen = profile_of(profile, target)
    cache = chosen.cache
    if not isinstance(cache, MagCache):
        raise InvalidSettings(
            "only a magcache cache is calibrated: give a profile with cache: {kind: magcache}"
        )
    earlier = session_of(target)
    try:
        with _enable(target, chosen, calibrating=True) as handle:
            run()
            ratios, steps = handle.levers.ratios(), handle.num_steps()
            timesteps = tuple(handle.levers.timesteps)
    finally:
        if earlier is not None and earlier.levers is not None:
            _enable_again(target, earlier, earlier.levers)
    if not ratios:
        raise RunFailed("no forward of the model ran, so nothing was measured: run the pipeline")
    measured = dataclasses.replace(
        cache, mag_ratios=ratios, num_inference_steps=steps, timesteps=timesteps
    )
    return dataclasses.replace(chosen, cache=measured)


def _enable_again(target: Any, session: Session, levers: Levers) -> None:
    """Enable the acceleration of an earlier session, with the attention that was enabled after it."""
    again = Levers(levers.profile, session.family, levers.replaced)
    settings = (session.sparse, session.guidance, session.quantization)
    replace_sessions(target, session.family, *settings, again)


def _enable(target: Any, profile: Profile, *, calibrating: bool) -> AccelerationHandle:
    family = check_target(target)
    before = session_of(target)
    replaced = before.sparse if before else None
    if before is not None and before.levers is not None and replaced is before.levers.profile:
        replaced = before.levers.replaced
    levers = Levers(profile, family, replaced, calibrating=calibrating)
    guidance, quantization = (before.guidance, before.quantization) if before else (None, None)
    replace_sessions(target, family, profile, guidance, quantization, levers)
    return AccelerationHandle(lambda: sessions_of(target), levers)
