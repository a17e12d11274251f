"""Nodes that change ComfyUI's own models: sparse attention and perturbed guidance."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from typing import Any

import torch

from dit_accel.comfyui.native_attention import (
    CLOSE,
    UNKNOWN,
    ModelCall,
    called_at,
    called_with,
    replaced,
    with_override,
)
from dit_accel.comfyui.native_guidance import Perturbation, guided, layers_of
from dit_accel.comfyui.node import (
    Node,
    Output,
    choice,
    number,
    socket,
    text,
    whole,
)
from dit_accel.comfyui.pipeline_nodes import CATEGORY, HEADS, sparse
from dit_accel.comfyui.sparse_override import SparseOverride
from dit_accel.core.precision import PRECISIONS
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import METHODS

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
    check_window(start, end)
    if chosen.schedule.min_tokens is None:
        schedule = dataclasses.replace(chosen.schedule, min_tokens=min_tokens)
        chosen = dataclasses.replace(chosen, schedule=schedule)
    if chosen.guard.mode != "off" or chosen.dense_precision != "full":
        log.warning(
            "dit_accel: guard and dense_precision of a profile do nothing in ComfyUI's own models"
        )
    changed = model.clone()
    override = SparseOverride(chosen)

    def begin(patcher: Any, *_: Any) -> None:
        override.begin()
        override.window = window_of(patcher, start, end)

    def around(executor: Any, *given: Any, **named: Any) -> Any:
        """One model call: our attention on top of whatever is there, in this call alone."""
        options = called_with(given, named)
        at = called_at(executor, given, named, override.seen)
        calls: list[ModelCall] = []

        def ours(previous: Any) -> Any:
            calls.append(ModelCall(at, previous))
            return torch.compiler.disable(override.attention(calls[-1]))

        given, named = replaced(given, named, with_override(options, ours))
        out = executor(*given, **named)
        if override.layers == UNKNOWN:
            override.layers = calls[-1].layer + 1
        return out

    def end_of_run(*_: Any) -> None:
        try:
            log.info(override.report())
        finally:
            override.reset()

    on(changed, "ON_PRE_RUN", begin)
    on(changed, "ON_CLEANUP", end_of_run)
    wrap(changed, around)
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
    check_window(start, end)
    kept = dict(head_set.settings) if head_set else {}
    given = {"scale": scale, "softness": softness, "rescale": rescale}
    settings = parse_dataclass(
        PerturbedGuidance, {**kept, **given, "interval": (0.0, 1.0)}, "guidance"
    )
    chosen = layers_of(head_set or layers)
    changed = model.clone()

    def after_cfg(given: dict[str, Any]) -> Any:
        import comfy.samplers

        sigma = given["sigma"]
        first, last = (
            s * (1 + CLOSE) for s in window_of(given["model"].current_patcher, start, end)
        )
        if not last < float(sigma.max()) <= first or not scale or not softness:
            return given["denoised"]
        perturbation = Perturbation(chosen, settings, head_set.model if head_set else None)
        seen = Counter[Any]()

        def around(executor: Any, *inner: Any, **named: Any) -> Any:
            options = called_with(inner, named)
            at = called_at(executor, inner, named, seen)
            calls: list[ModelCall] = []

            def ours(previous: Any) -> Any:
                calls.append(ModelCall(at, previous))
                return torch.compiler.disable(perturbation.attention(calls[-1]))

            inner, named = replaced(inner, named, with_override(options, ours))
            out = executor(*inner, **named)
            perturbation.check_layers(calls[-1])
            return out

        (weak,) = comfy.samplers.calc_cond_batch(
            given["model"],
            [given["cond"]],
            given["input"],
            sigma,
            wrapped(given["model_options"], around),
        )
        if perturbation.missing():
            log.warning("dit_accel: the model has no self-attention %s", perturbation.missing())
        return guided(given["denoised"], given["cond_denoised"], weak, settings)

    changed.set_model_sampler_post_cfg_function(after_cfg)
    return (changed,)


def check_window(start: float, end: float) -> None:
    """Refuse shares of the steps that do not rise."""
    if not start < end:
        raise InvalidSettings(f"start must be below end, got {start:g} and {end:g}")


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


def wrap(model: Any, around: Any) -> None:
    """Run every call of a patched model inside ``around``, outside of what is inside already."""
    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "dit_accel", around)


def wrapped(model_options: dict[str, Any], around: Any) -> dict[str, Any]:
    """Options of one extra pass with a wrapper inside all others; the given ones stay as they are."""
    from comfy.patcher_extension import WrappersMP

    inner = dict(model_options.get("transformer_options", {}))
    wrappers = {kind: dict(by_key) for kind, by_key in inner.get("wrappers", {}).items()}
    last = wrappers.setdefault(WrappersMP.APPLY_MODEL, {})
    last["dit_accel_perturbed"] = [*last.get("dit_accel_perturbed", ()), around]
    return {**model_options, "transformer_options": {**inner, "wrappers": wrappers}}


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
                "svg-ear",
                "svg, re-ttention, neighborhood, radial and band need a token grid.",
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
        files=("profile",),
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
                "Like '13' or '7:0,4; 9:*': self-attentions over the picture, counted from 0, and heads.",
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
