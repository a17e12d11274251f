"""Nodes that change ComfyUI's own models: sparse attention and perturbed guidance."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

from dit_accel.comfyui.declaration import (
    Node,
    Output,
    choice,
    number,
    socket,
    text,
    whole,
)
from dit_accel.comfyui.native import BRANCH, KEY, SparseOverride
from dit_accel.comfyui.native_guidance import PerturbingOverride, guided, layers_of
from dit_accel.comfyui.pipeline_nodes import CATEGORY, HEADS, sparse
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel.methods import METHODS
from dit_accel.parsing import parsed
from dit_accel.precision import PRECISIONS

log = logging.getLogger("dit_accel")


def attention(
    model: Any,
    method: str,
    knobs: str,
    precision: str,
    start: float,
    end: float,
    min_tokens: int,
    profile: str,
) -> tuple[Any]:
    """The model with sparse self-attention; other overrides keep what stays dense."""
    (chosen,) = sparse(method, knobs, 0.0, precision, "full", "off", profile)
    if chosen.schedule.min_tokens is None:
        schedule = dataclasses.replace(chosen.schedule, min_tokens=min_tokens)
        chosen = dataclasses.replace(chosen, schedule=schedule)
    changed = model.clone()
    override = SparseOverride(chosen, window_of(changed, start, end))

    def attend(*given: Any, **named: Any) -> Any:  # a closure is shared by clones, state included
        return override(*given, **named)

    def begin(*_: Any) -> None:
        override.begin()

    def install(patcher: Any, *_: Any) -> None:
        options = patcher.model_options.setdefault("transformer_options", {})
        if options.get(KEY) is not attend:
            override.previous = options.get(KEY)
            options[KEY] = attend

    def end_of_run(*_: Any) -> None:
        log.info(override.report())
        override.reset()

    install(changed)
    on(changed, "ON_PRE_RUN", begin)
    on(changed, "ON_PREPARE_STATE", install)
    on(changed, "ON_CLEANUP", end_of_run)
    return (changed,)


def guidance(
    model: Any,
    scale: float,
    layers: str,
    softness: float,
    start: float,
    end: float,
    rescale: float,
    head_set: HeadSet | None = None,
) -> tuple[Any]:
    """The model with perturbed guidance after classifier-free guidance, or without any."""
    settings = parsed(
        PerturbedGuidance, {"scale": scale, "softness": softness, "rescale": rescale}, "guidance"
    )
    chosen = layers_of(head_set or layers)
    changed = model.clone()
    first, last = window_of(changed, start, end)

    def after_cfg(given: dict[str, Any]) -> Any:
        import comfy.samplers

        sigma = given["sigma"]
        if not last < float(sigma.max()) <= first or not scale or not softness:
            return given["denoised"]
        options = dict(given["model_options"])
        inner = dict(options.get("transformer_options", {}))
        override = PerturbingOverride(chosen, settings, inner.get(KEY))
        inner |= {KEY: override.__call__, BRANCH: "perturbed"}
        options["transformer_options"] = inner
        (weak,) = comfy.samplers.calc_cond_batch(
            given["model"], [given["cond"]], given["input"], sigma, options
        )
        return guided(given["denoised"], given["cond_denoised"], weak, settings)

    changed.set_model_sampler_post_cfg_function(after_cfg)
    return (changed,)


def window_of(model: Any, start: float, end: float) -> tuple[float, float]:
    """Sigmas of a share of the steps: from ``start`` on, before ``end``."""
    sampling = model.get_model_object("model_sampling")
    first = math.inf if start <= 0.0 else float(sampling.percent_to_sigma(start))
    last = -math.inf if end >= 1.0 else float(sampling.percent_to_sigma(end))
    return first, last


def on(model: Any, event: str, call: Any) -> None:
    """Register a callback of ComfyUI's patcher."""
    from comfy.patcher_extension import CallbacksMP

    model.add_callback_with_key(getattr(CallbacksMP, event), "dit_accel", call)


MODEL = socket("model", "MODEL", "A diffusion transformer: Wan, Flux, HunyuanVideo, LTX, ...")
START = number("start", 0.0, 0.0, 1.0, 0.01, "First share of the steps, by ComfyUI's sigmas.")
END = number("end", 1.0, 0.0, 1.0, 0.01, "Last share of the steps.")

NODES = [
    Node(
        "DitAccelNativeAttention",
        "DiT-Accel attention",
        CATEGORY,
        "Sparse self-attention in ComfyUI's own models; chains with other attention nodes.",
        [
            MODEL,
            choice(
                "method",
                list(METHODS),
                "svg2",
                "svg, neighborhood, radial and band need a token grid.",
            ),
            text("knobs", "", "KNOB=VALUE, one per line, such as top_p=0.85.", multiline=True),
            choice("precision", PRECISIONS, "full", "Of the sparse calls."),
            dataclasses.replace(START, default=0.2),
            END,
            whole("min_tokens", 8192, 0, 1 << 20, "Shorter sequences stay dense.", 256),
            text(
                "profile", "", "A YAML or JSON profile: it wins over method, knobs and precision."
            ),
        ],
        [Output("MODEL", "model")],
        attention,
    ),
    Node(
        "DitAccelNativeGuidance",
        "DiT-Accel perturbed guidance",
        CATEGORY,
        "Perturbed-attention guidance on layers or heads, after CFG or at cfg 1; costs one more model call.",
        [
            MODEL,
            number("scale", 3.0, 0.0, 100.0, 0.1, "Strength; 0 is none."),
            text(
                "layers",
                "13",
                "Like '13' or '7:0,4; 9:*': self-attentions counted from 0, and heads.",
            ),
            number("softness", 1.0, 0.0, 1.0, 0.05, "Share of the perturbed attention."),
            START,
            END,
            number(
                "rescale", 0.0, 0.0, 1.0, 0.05, "Keep the standard deviation of the prediction."
            ),
            socket("head_set", HEADS, "From 'Head set': wins over layers.", optional=True),
        ],
        [Output("MODEL", "model")],
        guidance,
    ),
]
