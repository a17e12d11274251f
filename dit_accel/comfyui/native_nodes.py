"""Nodes that change ComfyUI's own models: sparse attention and perturbed guidance."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

from dit_accel.comfyui.guided_run import GuidedRun
from dit_accel.comfyui.model_call import build_wrapper
from dit_accel.comfyui.native_guidance import resolve_layers
from dit_accel.comfyui.node_declaration import (
    Node,
    Output,
    choice_input,
    float_input,
    int_input,
    socket_input,
    text_input,
)
from dit_accel.comfyui.settings_nodes import CATEGORY, HEADS, make_attention
from dit_accel.comfyui.sparse_override import SIGMA_TOLERANCE, SparseOverride
from dit_accel.core.precision import PRECISIONS
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import METHODS
from dit_accel.runtime.profile import Profile

log = logging.getLogger("dit_accel")


def patch_attention(
    model: Any,
    method: str,
    knobs: str,
    precision: str,
    start: float,
    end: float,
    min_tokens: int,
    profile: str,
) -> tuple[Any]:
    """Return a model with sparse self-attention. Other overrides get the calls that stay dense."""
    check_window(start, end)
    loaded = _make_native_profile(method, knobs, precision, min_tokens, profile)
    override = SparseOverride(loaded)
    patched = model.clone()

    def begin_run(patcher: Any, *_: Any) -> None:
        override.begin_run()
        override.window = find_sigma_window(patcher, start, end)

    def end_run(*_: Any) -> None:
        try:
            log.info(override.report())
        finally:
            override.free_state()

    add_callback(patched, "ON_PRE_RUN", begin_run)
    add_callback(patched, "ON_CLEANUP", end_run)
    wrapper = build_wrapper(override.build_attention, override.seen_calls, override.finish_call)
    add_wrapper(patched, wrapper)
    return (patched,)


def _make_native_profile(
    method: str, knobs: str, precision: str, min_tokens: int, file: str
) -> Profile:
    """Return the node's profile. ``min_tokens`` applies if the profile has none."""
    (profile,) = make_attention(method, knobs, 0.0, precision, "full", "off", file)
    if profile.schedule.min_tokens is None:
        schedule = dataclasses.replace(profile.schedule, min_tokens=min_tokens)
        profile = dataclasses.replace(profile, schedule=schedule)
    if profile.guard.mode != "off" or profile.dense_precision != "full":
        log.warning(
            "dit_accel: guard and dense_precision of a profile have no effect in ComfyUI's own models"
        )
    if profile.has_levers:
        log.warning(
            f"dit_accel: {', '.join(profile.levers())} of a profile has no effect in ComfyUI's own models"
        )
    return profile


def patch_guidance(
    model: Any,
    scale: float,
    layers: str,
    softness: float,
    start: float,
    end: float,
    rescale: float,
    head_set: HeadSet | None = None,
) -> tuple[Any]:
    """Return a model with perturbed guidance, which works with and without classifier-free guidance."""
    check_window(start, end)
    defaults = dict(head_set.settings) if head_set else {}
    values = {"scale": scale, "softness": softness, "rescale": rescale, "interval": (0.0, 1.0)}
    settings = parse_dataclass(PerturbedGuidance, {**defaults, **values}, "guidance")
    heads = resolve_layers(head_set or layers)
    shape = head_set.model if head_set else None

    run = GuidedRun(settings, heads, shape)

    def guide(arguments: dict[str, Any]) -> Any:
        reached = run.watch.take()
        window = find_sigma_window(arguments["model"].current_patcher, start, end)
        first, last = (sigma * (1 + SIGMA_TOLERANCE) for sigma in window)
        if not last < float(arguments["sigma"].max()) <= first or not scale or not softness:
            return arguments["denoised"]
        return run.guide(arguments, reached)

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(guide)
    if scale and softness:
        add_callback(patched, "ON_PRE_RUN", lambda *_: run.begin_run())
        add_callback(patched, "ON_CLEANUP", lambda *_: run.begin_run())
        add_wrapper(patched, run.watch.build_wrapper())
    return (patched,)


def check_window(start: float, end: float) -> None:
    """Check that a part of the steps is not empty.

    Raises:
        InvalidSettings: If it is.
    """
    if not start < end:
        raise InvalidSettings(f"start must be below end, got {start:g} and {end:g}")


def find_sigma_window(model: Any, start: float, end: float) -> tuple[float, float]:
    """Return the first and the last (excluded) sigma of a part of the steps, given as two fractions."""
    sampling = model.get_model_object("model_sampling")
    first = math.inf if start <= 0.0 else float(sampling.percent_to_sigma(start))
    last = -math.inf if end >= 1.0 else float(sampling.percent_to_sigma(end))
    return first, last


def add_callback(model: Any, event: str, callback: Callable[..., None]) -> None:
    """Register a callback on a ComfyUI model patcher."""
    from comfy.patcher_extension import CallbacksMP

    model.add_callback_with_key(getattr(CallbacksMP, event), "dit_accel", callback)


def add_wrapper(model: Any, wrapper: Callable[..., Any]) -> None:
    """Run each call of a patched model inside a wrapper. Wrappers that were added before run inside it."""
    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "dit_accel", wrapper)


MODEL = socket_input("model", "MODEL", "A diffusion transformer: Wan, Flux, HunyuanVideo, LTX, ...")
START = float_input("start", 0.0, 0.0, 1.0, 0.01, "Start of the part of the steps, as a fraction.")
END = float_input("end", 1.0, 0.0, 1.0, 0.01, "End of the part of the steps, as a fraction.")

NODES = [
    Node(
        "DitAccelNativeAttention",
        "DiT-Accel attention",
        CATEGORY,
        "Make self-attention sparse in ComfyUI's own models. It works together with other attention nodes.",
        [
            MODEL,
            choice_input(
                "method",
                list(METHODS),
                "svg-ear",
                "Sparse attention method. svg, re-ttention, neighborhood, radial, band and raster-window need a "
                "token grid.",
            ),
            text_input(
                "knobs", "", "KNOB=VALUE, one per line, such as top_p=0.85.", multiline=True
            ),
            choice_input("precision", PRECISIONS, "full", "Precision of the sparse calls."),
            dataclasses.replace(START, default=0.2),
            END,
            int_input("min_tokens", 8192, 0, 1 << 20, "Shorter sequences stay dense.", 256),
            text_input(
                "profile",
                "",
                "A YAML or JSON profile, or a recipe like svg2:wan-2.1-t2v-720p. It replaces method, knobs and "
                "precision.",
            ),
        ],
        [Output("MODEL", "model")],
        patch_attention,
        files=("profile",),
    ),
    Node(
        "DitAccelNativeGuidance",
        "DiT-Accel perturbed guidance",
        CATEGORY,
        "Add perturbed-attention guidance on layers or heads, with or without CFG. A step costs one more model call.",
        [
            MODEL,
            float_input("scale", 3.0, 0.0, 100.0, 0.1, "Strength. 0 turns guidance off."),
            text_input(
                "layers",
                "13",
                "Self-attentions over the image, counted from 0, and their heads: '13' or '7:0,4; 9:*'.",
            ),
            float_input("softness", 1.0, 0.0, 1.0, 0.05, "Weight of the perturbed attention."),
            START,
            END,
            float_input(
                "rescale",
                0.0,
                0.0,
                1.0,
                0.05,
                "How far to keep the standard deviation of the prediction.",
            ),
            socket_input("head_set", HEADS, "From 'Head set'. It replaces layers.", optional=True),
        ],
        [Output("MODEL", "model")],
        patch_guidance,
    ),
]
