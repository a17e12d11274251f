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
from dit_accel.comfyui.node_text import find_node, show_text
from dit_accel.comfyui.settings_nodes import (
    ATTENTION,
    CATEGORY,
    HEADS,
    check_attention,
    make_attention,
)
from dit_accel.comfyui.sparse_override import SIGMA_TOLERANCE, SparseOverride
from dit_accel.core.precision import PRECISIONS
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import METHODS
from dit_accel.runtime.profile import Profile

log = logging.getLogger("dit_accel")

REPORTS = "dit_accel_reports"
"""Key of a model's attachment: functions that describe the last run of each of our nodes."""

AUTO = "auto"
"""Text for the layer in the middle of the model."""


def check_model_attention(method: str, knobs: str, profile: str, precision: str) -> None:
    """Check the texts of the node for a MODEL, which has no guard.

    Raises:
        InvalidSettings: If they are invalid.
    """
    check_attention(method, knobs, profile, precision, "off")


def patch_attention(
    model: Any,
    method: str,
    knobs: str,
    precision: str,
    start: float,
    end: float,
    min_tokens: int,
    profile: str,
    attention: Profile | None = None,
) -> tuple[Any]:
    """Return a model with sparse self-attention. Other overrides get the calls that stay dense.

    ``attention`` replaces method, knobs, precision and profile.
    """
    check_window(start, end)
    if attention is None:
        (attention,) = make_attention(method, knobs, 0.0, precision, "full", "off", profile.strip())
    override = SparseOverride(_make_native_profile(attention, min_tokens))
    patched, node = model.clone(), find_node()

    def begin_run(patcher: Any, *_: Any) -> None:
        override.begin_run()
        override.window = find_sigma_window(patcher, start, end)

    def end_run(*_: Any) -> None:
        try:
            log.info(override.report())
            show_text(override.report(), node)
        finally:
            override.free_state()

    add_callback(patched, "ON_PRE_RUN", begin_run)
    add_callback(patched, "ON_CLEANUP", end_run)
    wrapper = build_wrapper(override.build_attention, override.seen_calls, override.finish_call)
    add_wrapper(patched, wrapper)
    add_report(patched, override.report)
    return (patched,)


def _make_native_profile(profile: Profile, min_tokens: int) -> Profile:
    """Return a profile for ComfyUI's own models. ``min_tokens`` applies if the profile has none."""
    if profile.schedule.min_tokens is None:
        schedule = dataclasses.replace(profile.schedule, min_tokens=min_tokens)
        profile = dataclasses.replace(profile, schedule=schedule)
    if profile.guard.mode != "off" or profile.dense_precision != "full":
        log.warning(
            "dit_accel: guard and dense_precision of a profile have no effect in ComfyUI's own models"
        )
    if profile.has_levers:
        log.warning(
            "dit_accel: %s of a profile have no effect in ComfyUI's own models. Put EasyCache, a weight dtype or "
            "TorchCompileModel beside this node.",
            ", ".join(profile.levers()),
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
    if defaults.get("adaptive"):
        raise InvalidSettings(
            "the head set has an adaptive scale, which guidance of a MODEL does not have: clear adaptive in its file, "
            "or use the pipeline nodes"
        )
    values = {"scale": scale, "softness": softness, "rescale": rescale, "interval": (0.0, 1.0)}
    settings = parse_dataclass(PerturbedGuidance, {**defaults, **values}, "guidance")
    is_auto = head_set is None and layers.strip() == AUTO
    heads = None if is_auto else resolve_layers(head_set or layers)
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
        node = find_node()

        def end_run(*_: Any) -> None:
            log.info(run.report())
            show_text(run.report(), node)
            run.free_state()

        add_callback(patched, "ON_PRE_RUN", lambda *_: run.begin_run())
        add_callback(patched, "ON_CLEANUP", end_run)
        add_wrapper(patched, run.watch.build_wrapper())
        if is_auto:
            add_wrapper(patched, run.build_counter())
        add_report(patched, run.report)
    return (patched,)


def check_layers(layers: str) -> None:
    """Check the notation of layers.

    Raises:
        InvalidSettings: If it is wrong.
    """
    if layers.strip() != AUTO:
        resolve_layers(layers)


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


def add_report(model: Any, describe: Callable[[], str]) -> None:
    """Attach a function to a patched model that describes what one of our nodes did."""
    model.set_attachments(REPORTS, [*(model.get_attachment(REPORTS) or ()), describe])


def add_wrapper(model: Any, wrapper: Callable[..., Any]) -> None:
    """Run each call of a patched model inside a wrapper. Wrappers that were added before run inside it."""
    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "dit_accel", wrapper)


MODEL = socket_input("model", "MODEL", "A diffusion transformer: Wan, Flux, HunyuanVideo, LTX, ...")
START = float_input(
    "start", 0.0, 0.0, 1.0, 0.01, "Start of the part of the steps, as a fraction.", advanced=True
)
END = float_input(
    "end", 1.0, 0.0, 1.0, 0.01, "End of the part of the steps, as a fraction.", advanced=True
)

NODES = [
    Node(
        "DitAccelNativeAttention",
        "Sparse attention for MODEL (DiT-Accel)",
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
            choice_input(
                "precision", PRECISIONS, "full", "Precision of the sparse calls.", advanced=True
            ),
            dataclasses.replace(START, default=0.2),
            END,
            int_input("min_tokens", 8192, 0, 1 << 20, "Shorter sequences stay dense.", 256),
            text_input(
                "profile",
                "",
                "A YAML or JSON profile, or a recipe like svg2:wan-2.1-t2v-720p. It replaces method, knobs and "
                "precision.",
                advanced=True,
            ),
            socket_input(
                "attention",
                ATTENTION,
                "From 'Sparse attention settings'. It replaces method, knobs, precision and profile.",
                optional=True,
            ),
        ],
        [Output("MODEL", "model")],
        patch_attention,
        files=("profile",),
        aliases=("sparge", "svg", "sparse video gen", "radial attention", "speed up", "sage"),
        check=check_model_attention,
    ),
    Node(
        "DitAccelNativeGuidance",
        "Perturbed guidance for MODEL (DiT-Accel)",
        CATEGORY,
        "Add perturbed-attention guidance on layers or heads, with or without CFG. A step costs one more model call.",
        [
            MODEL,
            float_input("scale", 3.0, 0.0, 100.0, 0.1, "Strength. 0 turns guidance off."),
            text_input(
                "layers",
                AUTO,
                "Self-attentions over the image, counted from 0, and their heads: 'auto' (the middle one), '13', "
                "'0, 1, 2', '0-2' or '7:0,4; 9:*'.",
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
                advanced=True,
            ),
            socket_input("head_set", HEADS, "From 'Head set'. It replaces layers.", optional=True),
        ],
        [Output("MODEL", "model")],
        patch_guidance,
        aliases=("pag", "perturbed attention guidance", "softpag", "heads"),
        check=check_layers,
    ),
]
