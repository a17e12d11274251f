"""The same prompt and seed dense and accelerated: what it gained and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from dit_accel.generation.render import Clip
from dit_accel.io.tables import format_table
from dit_accel_assets import oracle
from dit_accel_assets.world import parse_caption
from dit_accel_eval.metrics.caption import caption_correct
from dit_accel_eval.metrics.clip_score import clip_score_or_reason
from dit_accel_eval.metrics.drift import drift
from dit_accel_eval.metrics.flicker import flicker_difference
from dit_accel_eval.metrics.lpips import lpips_or_reason, net_of
from dit_accel_eval.metrics.psnr import psnr
from dit_accel_eval.metrics.ssim import ssim


def quality_metrics(
    dense: np.ndarray, other: np.ndarray, prompt: str, backbone: Path | None = None
) -> dict[str, Any]:
    """`similarity_metrics` of raw frames ``[T, H, W, 3]``, and how well both fit the prompt; for captions of the tiny
    world also what the oracle sees. A learned metric whose weights are not here is None, with the reason.
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
    """Paired metrics of frames ``[T, H, W, 3]``."""
    perceptual, reason = lpips_or_reason(other, dense, backbone=backbone)
    return {
        "psnr": psnr(other, dense),
        "ssim": ssim(other, dense),
        "lpips": perceptual,
        **({"lpips_reason": reason} if reason else {"lpips_net": net_of(backbone)}),
        "flicker": flicker_difference(other, dense),
        "drift": drift(other, dense),
    }


def _clip_scores(dense: np.ndarray, other: np.ndarray, prompt: str) -> dict[str, Any]:
    """How well both fit the prompt, and what the other gains."""
    (own, reason), (before, _) = (clip_score_or_reason(frames, prompt) for frames in (other, dense))
    if own is None or before is None:
        return {"clip_score": None, "clip_score_reason": reason}
    return {"clip_score": own, "clip_score_dense": before, "clip_score_gain": own - before}


def speedup(dense: Clip, other: Clip) -> float:
    """Ratio of the denoising times."""
    return dense.seconds["denoise"] / other.seconds["denoise"]


def where_time_went(clip: Clip) -> str:
    """Seconds of the denoising loop by part; ``rest`` is everything outside self-attention."""
    parts = dict(clip.attention.seconds)
    parts["rest"] = clip.seconds["denoise"] - sum(parts.values())
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())


def summary(dense: Clip, other: Clip, figures: dict[str, Any], method: str) -> str:
    """The table of a comparison: seconds, density, quality, and what the oracle saw."""
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
    backend = _AttentionBackendRegistry.get_active_backend()[0].value
    gained = f"speed-up of the denoising loop: {speedup(dense, other):.2f}"
    lines = [format_table(rows), f"{gained}, over diffusers' dense attention ({backend})"]
    lines += [
        f"{name} spent {where_time_went(clip)}"
        for name, clip in (("dense", dense), (method, other))
    ]
    if figures["lpips"] is None:
        lines.append(f"LPIPS not measured: {figures['lpips_reason']}")
    else:
        lines.append(f"LPIPS ({figures['lpips_net']}): {figures['lpips']:.4f}")
    if "seen" in figures:
        lines.append(f"PSNR inside the objects: {figures['psnr_objects']:.2f}")
        lines.append(f"oracle sees, dense:  {figures['seen_dense']}")
        lines.append(f"oracle sees, {method}: {figures['seen']}")
    return "\n".join(lines)
