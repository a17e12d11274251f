"""Sparse attention inside ComfyUI's own models, by an override of each attention call. It runs without ComfyUI."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dit_accel.comfyui.model_call import ModelCall
from dit_accel.comfyui.override import Attention, OverrideCall, build_override
from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.core.precision import ResolvedPrecision, choose
from dit_accel.core.schedule import CallContext
from dit_accel.methods import Dense, Method
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import RunStats
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
        stats: Counts of the run, for the report.
        states: State of the method, by stream, layer and shape.
        seen_calls: Number of model calls by sigma and stream.
        variants: The method with the knobs of the rules that apply, by rules.
        precisions: Precision that runs, by device.
        num_layers: Number of self-attentions of the model, known after its first call.
    """

    profile: Profile
    window: tuple[float, float] = (math.inf, -math.inf)
    stats: RunStats = field(default_factory=RunStats)
    states: dict[Any, Any] = field(default_factory=dict)
    seen_calls: Counter[Any] = field(default_factory=Counter)
    variants: dict[tuple[int, ...], Method] = field(default_factory=dict)
    precisions: dict[Any, ResolvedPrecision] = field(default_factory=dict)
    num_layers: int = UNKNOWN_LAYERS

    def __post_init__(self) -> None:
        self.ops = Ops(self.stats.timer, self.stats.plans)

    def begin_run(self) -> None:
        """Start a run with new counts."""
        self.free_state()
        self.stats.reset()

    def free_state(self) -> None:
        """Free the state of a run. The counts stay for the report."""
        self.states.clear()
        self.seen_calls.clear()
        self.ops.forget()
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
            self.stats.fallback(reason)
            return call.pass_on(model_call.previous)

        return build_override(answer)

    def sparse(self, call: OverrideCall, model_call: ModelCall) -> Tensor | str:
        """Return sparse attention ``[B, S, H, D]``, or the reason why the call stays dense."""
        step, tensors = model_call.step, call.split_inputs()
        query = tensors[0]
        tokens = query.shape[1]
        first, last = (sigma * (1 + SIGMA_TOLERANCE) for sigma in self.window)
        if not last < step.sigma <= first:
            return "outside the chosen part of the steps"
        context = CallContext(
            step.step, step.num_steps, model_call.layer, self.num_layers, "model", step.branch
        )
        rules = self.profile.schedule.rules_at(context)
        if rules not in self.variants:
            self.variants[rules] = self.profile.at(rules)
        method = self.variants[rules]
        if isinstance(method, Dense) or self.profile.schedule.is_dense(context, rules):
            return "dense by schedule"
        if tokens < (self.profile.schedule.min_tokens or 0):
            return f"fewer than {self.profile.schedule.min_tokens} tokens"
        layout = step.find_layout(call.transformer_options, tokens)
        if layout is None and method.needs_grid:
            return f"{method.name} needs a token grid, and none has {tokens} tokens with or without the text"
        attention = AttentionCall(
            *tensors,
            call.scale,
            model_call.layer,
            self.num_layers,
            step.step,
            step.num_steps,
            step.branch,
            layout or TokenLayout(1, 1, tokens),
            self._resolve_precision(query).precision,
        )
        owner = (step.stream, model_call.layer, tuple(query.shape))
        if owner not in self.states:
            self.states[owner] = method.new_state()
        attended = method.attend(attention, self.states[owner], self.ops)
        if attended is None:
            return f"{method.name} found nothing better than dense"
        self.stats.sparse(f"layer {model_call.layer}", attended.density)
        return attended.out

    def _resolve_precision(self, query: Tensor) -> ResolvedPrecision:
        """Return the precision that runs on the query's device. It is decided once."""
        if query.device not in self.precisions:
            self.precisions[query.device] = choose(self.profile.precision, query.device)
        return self.precisions[query.device]

    def report(self) -> str:
        """Return one line about the run, for the log."""
        remarks = [precision.remark for precision in self.precisions.values() if precision.remark]
        reasons = ", ".join(f"{reason} x{n}" for reason, n in self.stats.fallbacks.items())
        density, calls = self.stats.density()["sparse_calls"], self.stats.calls["sparse"]
        sparse = f"{calls} sparse calls of density {density:.2f}" if calls else "no call was sparse"
        parts = [f"dit_accel: {self.profile.method.name}: {sparse}", f"dense: {reasons or 'none'}"]
        return "; ".join([*parts, *remarks])
