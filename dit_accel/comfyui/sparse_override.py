"""Sparse attention inside ComfyUI's own models, by an override of each attention call. It runs without ComfyUI."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_accel.comfyui.image_tokens import TokenGrid
from dit_accel.comfyui.model_call import ModelCall
from dit_accel.comfyui.override import Attention, OverrideCall, build_override
from dit_accel.core.attention_call import AttentionCall, CallContext
from dit_accel.runtime.dispatch import OTHER_DTYPE, MethodRunner, has_other_dtype
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.run_state import Run
from dit_accel_pipelines import TokenLayout

UNKNOWN_LAYERS = 1 << 20
"""Number of layers before the first model call ends. No layer counted from the last is below it."""

SIGMA_TOLERANCE = 1e-5
"""Relative tolerance of sigmas, because ComfyUI computes those of a run in float32 and those of a window in float64."""


@dataclass
class SparseOverride:
    """A profile applied to the self-attention of a model, for one run at a time.

    Attributes:
        profile: How attention runs.
        window: Sigmas at which attention is sparse: ``window[1] < sigma <= window[0]``.
        seen_calls: Number of model calls by sigma and stream.
        num_layers: Number of self-attentions of the model, known after its first call.
    """

    profile: Profile
    window: tuple[float, float] = (math.inf, -math.inf)
    seen_calls: Counter[Any] = field(default_factory=Counter)
    num_layers: int = UNKNOWN_LAYERS

    def __post_init__(self) -> None:
        self.runner, self.run = MethodRunner(self.profile), Run(self.profile)

    def begin_run(self) -> None:
        """Start a run with new state and new counts."""
        self.free_state()
        self.run = Run(self.profile)

    def free_state(self) -> None:
        """Free the state of a run. The counts stay for the report."""
        self.run.free()
        self.seen_calls.clear()
        self.num_layers = UNKNOWN_LAYERS

    def finish_call(self, call: ModelCall) -> None:
        """Keep the number of layers that a model call had."""
        if self.num_layers == UNKNOWN_LAYERS:
            self.num_layers = call.layer + 1

    def build_attention(self, model_call: ModelCall) -> Attention:
        """Return the attention override of one model call."""

        def answer(call: OverrideCall) -> Tensor:
            reason = model_call.count_layer(call)
            if reason is None and call.mask is not None:
                reason = "attention mask"
            if reason is None:
                attended = self.sparse(call, model_call)
                if isinstance(attended, Tensor):
                    return call.join_output(attended)
                reason = attended
            self.run.stats.count_fallback(reason)
            return call.pass_on(model_call.previous)

        return build_override(answer)

    def sparse(self, call: OverrideCall, model_call: ModelCall) -> Tensor | str:
        """Return sparse attention ``[B, S, H, D]``, or the reason why the call stays dense."""
        step = model_call.step
        first, last = (sigma * (1 + SIGMA_TOLERANCE) for sigma in self.window)
        if not last < step.sigma <= first:
            return "outside the chosen part of the steps"
        query, key, value = call.split_inputs()
        if has_other_dtype(query):
            return OTHER_DTYPE
        if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
            return "gradients flow through the attention"
        tokens = query.shape[1]
        grid = step.tokens.find_grid(call.transformer_options, tokens)
        context = CallContext(
            step=step.step,
            num_steps=step.num_steps,
            layer=model_call.layer,
            num_layers=self.num_layers,
            component="model",
            branch=step.branch,
        )
        route = self.runner.route(
            context,
            self.run,
            tokens=tokens,
            has_grid=grid is not None,
            min_tokens=self.profile.schedule.min_tokens or 0,
        )
        if route.reason is not None:
            return route.reason
        method = route.method or route.observer
        if method is None:
            return "dense by schedule"
        grid = grid or TokenGrid(TokenLayout(1, 1, tokens))
        if not method.needs_grid:
            grid = grid.without_grid()
        query, key, value = (grid.move_to_front(tensor) for tensor in (query, key, value))
        attention = AttentionCall(
            query=query,
            key=key,
            value=value,
            scale=call.scale,
            context=context,
            layout=grid.layout,
        )
        owner = (step.stream, model_call.layer, tuple(query.shape))
        if route.observer is not None:
            self.runner.observe(attention, self.run, route.observer, owner)
        if route.method is None:
            return "dense by schedule"
        attended = self.runner.run_method(attention, self.run, route.method, owner)
        if attended is None:
            return f"{route.method.name} found nothing better than dense"
        self.run.stats.count_sparse(f"layer {model_call.layer}", attended.density)
        return grid.move_back(attended.out)

    def report(self) -> str:
        """Return one line about the run, for the log."""
        stats, name = self.run.stats, self.profile.method.name
        reasons = ", ".join(f"{reason} x{n}" for reason, n in stats.fallbacks.items())
        density, calls = stats.density()["sparse_calls"], stats.calls["sparse"]
        sparse = f"{calls} sparse calls of density {density:.2f}" if calls else "no call was sparse"
        remarks = self.runner.precisions.remarks()
        return "; ".join([f"dit_accel: {name}: {sparse}", f"dense: {reasons or 'none'}", *remarks])
