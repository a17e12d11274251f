"""Compare a clip with the dense clip of the same prompt and seed: quality and time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dit_accel.generation.render import Clip
from dit_accel.hooks.attention_backend import active_backend_name
from dit_accel.io.tables import format_table
from dit_accel.methods import Dense
from dit_accel.runtime.report import AttentionReport
from dit_accel_assets import oracle
from dit_accel_assets.world import parse_caption
from dit_accel_eval.metrics.caption import caption_correct
from dit_accel_eval.metrics.clip_pairs import NoBackbone
from dit_accel_eval.metrics.clip_score import cached_clip, clip_score_or_reason
from dit_accel_eval.metrics.cvvdp import cvvdp_or_reason, find_cvvdp
from dit_accel_eval.metrics.drift import drift
from dit_accel_eval.metrics.flicker import flicker_difference
from dit_accel_eval.metrics.lpips import cached_backbone, lpips_band, lpips_or_reason, net_of
from dit_accel_eval.metrics.preference import PICKSCORE, find_weights_file
from dit_accel_eval.metrics.psnr import psnr
from dit_accel_eval.metrics.ssim import ssim_or_reason
from dit_accel_eval.metrics.st_lpips import find_st_weights, st_lpips_or_reason


def quality_metrics(
    dense: np.ndarray, other: np.ndarray, prompt: str, backbone: Path | None = None
) -> dict[str, Any]:
    """Return `similarity_metrics`, CLIP scores, and for captions of the tiny world the verdict of its oracle.

    Args:
        dense, other: Raw frames ``[T, H, W, 3]``.
        prompt: Text that both clips were made for.
        backbone: Weights for LPIPS. None takes those in torch's cache.

    Returns:
        Figures by name. A metric is None if its weights are not on this machine or the frames are too small for it,
        and ``NAME_reason`` says why.

    Raises:
        ValueError: if shapes differ or values are not finite.
    """
    figures = {**similarity_metrics(dense, other, backbone), **_clip_scores(dense, other, prompt)}
    scene = parse_caption(prompt)
    if scene is not None:
        figures["psnr_objects"] = psnr(other, dense, mask=oracle.object_mask(dense))
        for end, frames in (("_dense", dense), ("", other)):
            figures[f"correct{end}"], figures[f"seen{end}"] = caption_correct(frames, scene)
    return figures


def similarity_metrics(
    dense: np.ndarray, other: np.ndarray, backbone: Path | None = None
) -> dict[str, Any]:
    """Return the metrics of frames ``[T, H, W, 3]`` that need no prompt.

    Raises:
        ValueError: if shapes differ or values are not finite.
    """
    structural, too_small = ssim_or_reason(other, dense)
    perceptual, reason = lpips_or_reason(other, dense, backbone=backbone)
    tolerant, missing = st_lpips_or_reason(other, dense)
    visible, absent = cvvdp_or_reason(other, dense)
    return {
        "psnr": psnr(other, dense),
        "ssim": structural,
        **({"ssim_reason": too_small} if too_small else {}),
        "lpips": perceptual,
        **({"lpips_reason": reason} if reason else {"lpips_net": net_of(backbone)}),
        "st_lpips": tolerant,
        **({"st_lpips_reason": missing} if missing else {}),
        "cvvdp": visible,
        **({"cvvdp_reason": absent} if absent else {}),
        "flicker": flicker_difference(other, dense),
        "drift": drift(other, dense),
    }


def _clip_scores(dense: np.ndarray, other: np.ndarray, prompt: str) -> dict[str, Any]:
    """Return the CLIP score of both clips and the gain of the other over dense."""
    score, reason = clip_score_or_reason(other, prompt)
    base, _ = clip_score_or_reason(dense, prompt)
    if score is None or base is None:
        return {"clip_score": None, "clip_score_reason": reason}
    return {"clip_score": score, "clip_score_dense": base, "clip_score_gain": score - base}


def installed_metrics() -> dict[str, bool]:
    """Return which metrics of the extra ``metrics`` can be measured, without importing their packages."""
    found = {}
    for name, find in (("st_lpips", find_st_weights), ("cvvdp", find_cvvdp)):
        try:
            found[name] = bool(find())
        except NoBackbone:
            continue
    return found


def find_weights() -> dict[str, str]:
    """Return the place of the weights of each learned metric, or what is missing."""
    places = {}
    finders: dict[str, Callable[[], Path]] = {
        "LPIPS": cached_backbone,
        "ST-LPIPS": find_st_weights,
        "ColorVideoVDP": find_cvvdp,
        "CLIP score": cached_clip,
        "PickScore": partial(find_weights_file, PICKSCORE),
    }
    for metric, find in finders.items():
        try:
            places[metric] = str(find())
        except NoBackbone as error:
            places[metric] = f"no weights: {error}"
    return places


def speedup(dense: Clip, other: Clip) -> float:
    """Return the ratio of the denoising times."""
    return dense.seconds["denoise"] / other.seconds["denoise"]


def no_effect(report: AttentionReport) -> str | None:
    """Return why nothing that a profile sets had an effect, or None if something had one."""
    idle = report.idle_levers
    if report.calls["sparse"] or set(report.levers) - ({"cache"} if idle else set()):
        return None
    reasons = [*([report.no_effect] if report.no_effect else []), *idle]
    if not reasons and report.method == Dense.name and report.precision["dense"] == "full":
        return "attention is dense in full precision, as in the reference"
    return "; ".join(reasons) or None


def reported_speedup(dense: Clip, other: Clip) -> float | None:
    """Return the `speedup`, or None if nothing had an effect, because the ratio is then chance."""
    return None if no_effect(other.attention) else speedup(dense, other)


def describe_times(clip: Clip) -> str:
    """Return the seconds of the denoising loop by part. ``rest`` is everything outside self-attention."""
    parts = dict(clip.attention.seconds)
    parts["rest"] = clip.seconds["denoise"] - sum(parts.values())
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())


def summary(dense: Clip, other: Clip, figures: dict[str, Any], method: str) -> str:
    """Return the table of a comparison: seconds, density, quality, and the verdict of the oracle."""
    rows = {
        name: {
            "denoise s": clip.seconds["denoise"],
            "total s": clip.seconds["total"],
            "density (sparse calls)": clip.attention.density["sparse_calls"],
            "density (all calls)": clip.attention.density["all_calls"],
            "PSNR": figures["psnr"] if clip is other else None,
            "SSIM": figures["ssim"] if clip is other else None,
        }
        for name, clip in (("dense", dense), (method, other))
    }
    ratio, idle = reported_speedup(dense, other), other.attention.no_effect
    lines = [idle] if idle else []
    lines.append(format_table(rows))
    if ratio is not None:
        backend = f"the dense attention that diffusers uses ({active_backend_name()})"
        lines.append(f"speed-up of the denoising loop: {ratio:.2f}, over {backend}")
    lines += [
        f"{name} spent {describe_times(clip)}" for name, clip in (("dense", dense), (method, other))
    ]
    if figures["ssim"] is None:
        lines.append(f"SSIM not measured: {figures['ssim_reason']}")
    if figures["lpips"] is None:
        lines.append(f"LPIPS not measured: {figures['lpips_reason']}")
    else:
        band = lpips_band(figures["lpips"])
        lines.append(f"LPIPS ({figures['lpips_net']}): {figures['lpips']:.4f} ({band})")
    if figures.get("st_lpips") is not None:
        lines.append(f"ST-LPIPS: {figures['st_lpips']:.4f}")
    if figures.get("cvvdp") is not None:
        lines.append(f"ColorVideoVDP: {figures['cvvdp']:.2f} JOD")
    if "seen" in figures:
        lines.append(f"PSNR inside the objects: {figures['psnr_objects']:.2f}")
        lines.append(f"the dense clip shows: {figures['seen_dense']}")
        lines.append(f"the {method} clip shows: {figures['seen']}")
    return "\n".join(lines)
