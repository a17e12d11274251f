"""Say what each lever of a render did, and what it saved against the same render without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dit_accel.extensions import load_extension
from dit_accel.io.tables import format_table
from dit_accel.methods import Dense

if TYPE_CHECKING:
    from dit_accel.generation.render import Clip
    from dit_accel.generation.settings import RenderSettings
    from dit_accel.runtime.report import AttentionReport

ATTENTION, PRECISION = "attention", "precision"


def without_each_lever(settings: RenderSettings) -> dict[str, RenderSettings]:
    """Return settings without one lever, for each lever that they have. The others stay as they are.

    The names are ``attention``, ``precision``, ``cache``, ``linears`` and ``compile``.
    """
    changes: dict[str, dict[str, Any]] = {}
    is_sparse, full = settings.method != Dense.name, "full"
    if is_sparse:
        dense = {"method": Dense.name, "knobs": {}, "precision": full, "guard": "off"}
        changes[ATTENTION] = dense
    if settings.dense_precision != full or (is_sparse and settings.precision != full):
        changes[PRECISION] = {"precision": full, "dense_precision": full}
    levers = settings.levers or {}
    for name in levers:
        changes[name] = {"levers": {k: v for k, v in levers.items() if k != name} or None}
    return {name: dataclasses.replace(settings, **values) for name, values in changes.items()}


def explain(
    settings: RenderSettings,
    clip: Clip,
    dense: Clip,
    render: Callable[[RenderSettings, str], Clip],
) -> dict[str, dict[str, float]]:
    """Render without each lever, and return by lever what it saved in seconds and lost in dB.

    Args:
        settings: Settings with all levers.
        clip: The clip of these settings.
        dense: The dense clip.
        render: Renders settings without a lever, given with its name.
    """
    psnr = load_extension("comparison").psnr
    own, explained = psnr(clip.frames, dense.frames), {}
    for lever, without in without_each_lever(settings).items():
        other = render(without, lever)
        seconds, near = other.seconds["denoise"], psnr(other.frames, dense.frames)
        explained[lever] = {
            "denoise_seconds_without": seconds,
            "saved_seconds": seconds - clip.seconds["denoise"],
            "psnr_without": near,
            "lost_psnr": near - own,
        }
    return explained


def format_levers(report: AttentionReport, explained: dict[str, dict[str, float]]) -> str:
    """Return a table of what each lever did in a run, or an empty text without levers.

    Args:
        report: The report of the run.
        explained: What `explain` returned, or an empty dictionary for a table with fewer columns.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, (label, did) in _effects(report).items():
        saved = explained.get(name, {})
        more = {"saves s": saved.get("saved_seconds"), "costs dB": saved.get("lost_psnr")}
        rows[label] = {"what it did": did, **(more if explained else {})}
    return format_table(rows) if rows else ""


def _effects(report: AttentionReport) -> dict[str, tuple[str, str]]:
    """Return label and effect of each lever by name."""
    effects: dict[str, tuple[str, str]] = {}
    levers = report.levers
    if "cache" in levers:
        effects["cache"] = f"{levers['cache']['kind']} cache", _cache_effect(report)
    if report.method != Dense.name:
        effects[ATTENTION] = report.method, report.no_effect or _attention_effect(report)
    precisions = {kind: name for kind, name in report.precision.items() if name != "full"}
    if precisions:
        did = ", ".join(f"{kind} calls in {name}" for kind, name in precisions.items())
        effects[PRECISION] = "attention precision", did
    if "linears" in levers:
        did = f"{levers['linears']['kind']} in {levers['linears']['changed']} layers"
        effects["linears"] = "linears", did
    if "compile" in levers:
        effects["compile"] = "compile", f"compiled {levers['compile']['blocks']} blocks"
    return effects


def _cache_effect(report: AttentionReport) -> str:
    cache, seconds = report.levers["cache"], {"skipped": 0.0, "computed": 0.0}
    if report.idle_levers:
        return report.idle_levers[0]
    if not cache["skipped"]:
        return f"reused {cache['reused']} attention calls"
    for of_component in report.forward_seconds.values():
        for kind, value in of_component.items():
            seconds[kind] += value
    return (
        f"skipped {cache['skipped']} of {cache['forwards']} forwards: {seconds['skipped']:.2f} s in these, "
        f"{seconds['computed']:.2f} s in the others"
    )


def _attention_effect(report: AttentionReport) -> str:
    density, calls = report.density["sparse_calls"], sum(report.calls.values())
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in sorted(report.seconds.items()))
    return f"density {density or 0:.3f} in {report.calls['sparse']} of {calls} calls: {parts}"
