"""Attention inside ComfyUI's own models, without ComfyUI: an override of one attention call.

ComfyUI calls ``override(func, q, k, v, heads, mask=..., transformer_options=..., ...)`` for self- and cross-attention
of a model, where ``func`` is the attention that would run. Here a call becomes an `AttentionCall`, or goes on to
the override that was there before, or to ``func``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dit_accel.call import AttentionCall
from dit_accel.config import Place
from dit_accel.methods import Dense, Method
from dit_accel.ops import Ops
from dit_accel.precision import choose
from dit_accel.profile import Profile
from dit_accel.report import Tally
from dit_accel_pipelines import TokenLayout

Attention = Callable[..., Tensor]
Tokens = tuple[Tensor, Tensor, Tensor]  # [B, S, H, D] each
KEY = "optimized_attention_override"
BRANCH = "dit_accel_branch"  # in transformer_options: what sets a model call apart from others of its conditions
GRIDS = ("svg", "neighborhood", "radial", "band")  # methods that need to know where a token is


@dataclass
class Forward:
    """One call of a model: where in the run it is, and how many self-attentions it made so far.

    Attributes:
        options: the dictionary that ComfyUI hands to every layer of this call.
        branch: the conditions in its batch.
    """

    options: Mapping[str, Any]
    step: int
    num_steps: int | None
    branch: tuple[str, ...]
    calls: int = 0


def forward_of(options: Mapping[str, Any]) -> Forward:
    """A model call from ComfyUI's ``sigmas`` (of this step) and ``sample_sigmas`` (of all)."""
    sigmas, every = options["sigmas"], options.get("sample_sigmas")
    conditions = options.get("uuids") or options["cond_or_uncond"]
    branch = (*map(str, conditions), options.get(BRANCH, ""))
    if every is None:
        return Forward(options, 0, None, branch)
    distance = (every.to(sigmas.device) - sigmas.max()).abs()
    return Forward(options, int(distance[:-1].argmin()), len(every) - 1, branch)


def takes(q: Tensor, k: Tensor, heads: int, skip_reshape: bool) -> tuple[int, int]:
    """Numbers of queries and keys."""
    axis = 2 if skip_reshape else 1
    return q.shape[axis], k.shape[axis]


def split(x: Tensor, heads: int, skip_reshape: bool) -> Tensor:
    """``[B, S, H, D]`` from ComfyUI's ``[B, H, S, D]`` or ``[B, S, H * D]``."""
    return x.transpose(1, 2) if skip_reshape else x.unflatten(-1, (heads, -1))


def as_tokens(q: Tensor, k: Tensor, v: Tensor, heads: int, skip_reshape: bool) -> Tokens:
    """Query, key and value, `split`."""
    return (
        split(q, heads, skip_reshape),
        split(k, heads, skip_reshape),
        split(v, heads, skip_reshape),
    )


def joined(out: Tensor, skip_output_reshape: bool) -> Tensor:
    """The inverse, of an output."""
    return out.transpose(1, 2) if skip_output_reshape else out.flatten(2)


def layout_of(options: Mapping[str, Any], tokens: int) -> TokenLayout | None:
    """Where the visual tokens are, if the model tells: ``grid_sizes``, and text before them by ``img_slice``."""
    grid, part = options.get("grid_sizes"), options.get("img_slice")
    text = int(part[0]) if part is not None else 0
    sizes = tuple(int(n) for n in grid) if grid is not None else ()
    if len(sizes) == 3 and math.prod(sizes) == tokens - text:
        return TokenLayout(*sizes, text_tokens=text, text_first=True)
    if 0 < text < tokens:
        return TokenLayout(1, 1, tokens - text, text_tokens=text, text_first=True)
    return None


@dataclass
class SparseOverride:
    """A profile applied to the self-attention of a model.

    Attributes:
        window: sigmas between which it is sparse: ``window[1] < sigma <= window[0]``.
        previous: the override that was there before, which gets every call that stays dense.
        reasons: why calls stayed dense.
    """

    profile: Profile
    window: tuple[float, float] = (math.inf, -math.inf)
    previous: Attention | None = None
    tally: Tally = field(default_factory=Tally)
    states: dict[Any, Any] = field(default_factory=dict)
    variants: dict[tuple[int, ...], Method] = field(default_factory=dict)
    forward: Forward | None = None
    layers: int = 0

    def __post_init__(self) -> None:
        self.ops = Ops(self.tally.stopwatch, self.tally.plans)
        self._declining = False

    def reset(self) -> None:
        """A run is over: drop its memory, keep the counts for the report."""
        self.states.clear()
        self.ops.forget()
        self.forward, self.layers = None, 0

    def begin(self) -> None:
        """A run begins: count anew."""
        self.reset()
        self.tally.reset()

    def __call__(
        self,
        func: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """One attention call, as ComfyUI makes it."""
        options = kwargs.get("transformer_options") or {}
        queries, keys = takes(q, k, heads, skip_reshape)
        reason = "called outside sampling"
        if queries != keys:
            reason = "cross attention"
        elif "sigmas" in options and ("uuids" in options or "cond_or_uncond" in options):
            tensors = as_tokens(q, k, v, heads, skip_reshape)
            out = self.attend(tensors, mask, options, kwargs.get("scale"))
            if isinstance(out, Tensor):
                return joined(out, skip_output_reshape)
            reason = out
        self.tally.fallback(reason)
        settings = {"mask": mask, "attn_precision": attn_precision, **kwargs}
        settings |= {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        if self.previous is None or self._declining:  # who came before may lead back here
            return func(q, k, v, heads, **settings)
        self._declining = True
        try:
            return self.previous(func, q, k, v, heads, **settings)
        finally:
            self._declining = False

    def attend(
        self, tensors: Tokens, mask: Tensor | None, options: Mapping[str, Any], scale: Any
    ) -> Tensor | str:
        """Sparse attention ``[B, S, H, D]``, or why the call stays dense."""
        forward = self._forward(options)
        layer = forward.calls
        forward.calls += 1
        query = tensors[0]
        tokens = query.shape[1]
        if mask is not None:
            return "attention mask"
        if not self.window[1] < float(options["sigmas"].max()) <= self.window[0]:
            return "outside its part of the steps"
        layers = int(options.get("total_blocks") or max(self.layers, layer + 1))
        branch = "+".join(forward.branch)
        place = Place(forward.step, forward.num_steps, layer, layers, "model", branch)
        rules = self.profile.schedule.rules_at(place)
        if rules not in self.variants:
            self.variants[rules] = self.profile.at(rules)
        method = self.variants[rules]
        if isinstance(method, Dense) or self.profile.schedule.is_dense(place, rules):
            return "dense by schedule"
        if tokens < (self.profile.schedule.min_tokens or 0):
            return f"fewer than {self.profile.schedule.min_tokens} tokens"
        layout = layout_of(options, tokens)
        if layout is None and needs_grid(method):
            return f"{method.name} needs a grid of tokens, which this model does not tell"
        call = AttentionCall(
            *tensors,
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            layer,
            layers,
            forward.step,
            forward.num_steps,
            branch,
            layout or TokenLayout(1, 1, tokens),
            choose(self.profile.precision, query.device).precision,
        )
        owner = (forward.branch, layer, tuple(query.shape))
        state = self.states.setdefault(owner, method.new_state())
        attended = method.attend(call, state, self.ops)
        if attended is None:
            return f"{method.name} found nothing better than dense"
        self.tally.sparse(f"layer {layer}", attended.density)
        return attended.out

    def _forward(self, options: Mapping[str, Any]) -> Forward:
        """The model call that this attention belongs to; the first one of a step reads the step."""
        if self.forward is None or self.forward.options is not options:
            before = self.forward
            self.forward = forward_of(options)
            if before is not None:
                self.layers = max(self.layers, before.calls)
                if self.forward.step < before.step:
                    self.states.clear()
        return self.forward

    def report(self) -> str:
        """One line for the log."""
        density, calls = self.tally.density(), Counter(self.tally.calls)
        if not calls["sparse"]:
            told = ", ".join(f"{reason} x{n}" for reason, n in self.tally.fallbacks.items())
            return (
                f"dit_accel: {self.profile.method.name}: no call was sparse ({told or 'none came'})"
            )
        return (
            f"dit_accel: {self.profile.method.name}: {calls['sparse']} sparse calls of density "
            f"{density['sparse_calls']:.2f}, {calls['fallback']} dense"
        )


def needs_grid(method: Method) -> bool:
    """Whether a method, or its mask, has to know where a token is."""
    inner = getattr(method, "inner", None)
    return method.name in GRIDS or (isinstance(inner, Method) and needs_grid(inner))
