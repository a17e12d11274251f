"""The same prompt and seed dense and accelerated: what it gained and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from dit_accel.lazy import load
from dit_accel.render import Clip
from dit_accel_assets import oracle
from dit_accel_assets.world import parse_caption


def quality(
    dense: np.ndarray, other: np.ndarray, prompt: str, backbone: Path | None = None
) -> dict[str, Any]:
    """`nearness` of raw frames ``[T, H, W, 3]``, and how well both fit the prompt; for captions of the tiny
    world also what the oracle sees. A learned metric whose weights are not here is None, with the reason.
    """
    figures = {**nearness(dense, other, backbone), **_clip_scores(dense, other, prompt)}
    scene = parse_caption(prompt)
    if scene is not None:
        figures["psnr_objects"] = load("psnr")(other, dense, mask=oracle.object_mask(dense))
        for end, frames in (("_dense", dense), ("", other)):
            figures[f"correct{end}"], figures[f"seen{end}"] = load("caption")(frames, scene)
    return figures


def nearness(dense: np.ndarray, other: np.ndarray, backbone: Path | None = None) -> dict[str, Any]:
    """Paired metrics of frames ``[T, H, W, 3]``."""
    perceptual, reason = load("lpips")(other, dense, backbone=backbone)
    return {
        "psnr": load("psnr")(other, dense),
        "ssim": load("ssim")(other, dense),
        "lpips": perceptual,
        **({"lpips_reason": reason} if reason else {"lpips_net": load("lpips_net")(backbone)}),
        "flicker": load("flicker")(other, dense),
        "drift": load("drift")(other, dense),
    }


def _clip_scores(dense: np.ndarray, other: np.ndarray, prompt: str) -> dict[str, Any]:
    """How well both fit the prompt, and what the other gains."""
    (own, reason), (before, _) = (load("clip_score")(frames, prompt) for frames in (other, dense))
    if reason:
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


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows of figures by name, as text with aligned columns."""
    columns = list(next(iter(rows.values())))
    cells = [["", *columns]] + [
        [name, *(_shown(row[c]) for c in columns)] for name, row in rows.items()
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


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
    lines = [table(rows), f"{gained}, over diffusers' dense attention ({backend})"]
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


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
