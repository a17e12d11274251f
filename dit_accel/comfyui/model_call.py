"""One call of a ComfyUI model: its denoising step, its token grid, and an override of its attention.

ComfyUI runs wrappers around ``apply_model``. `build_wrapper` makes one that describes each call by a new `ModelCall`,
so no state of a call outlives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_accel.comfyui.image_tokens import ImageTokens, read_tokens
from dit_accel.comfyui.override import Attention, OverrideCall

OVERRIDE_KEY = "optimized_attention_override"
"""Key of the attention override in ComfyUI's ``transformer_options``."""

BRANCHES = ("cond", "uncond")
"""Branches by ComfyUI's index of a condition."""


@dataclass(frozen=True)
class ModelStep:
    """Step and tokens of one model call.

    Attributes:
        sigma: Noise level of the step.
        step: Index of the step among the sigmas of the run.
        num_steps: Number of steps, or None if it is unknown.
        branch: ``"cond"``, ``"uncond"``, or both joined by ``+``.
        stream: Key of the state that the call uses: its conditions, its context window, and the number of equal calls
            before it at this sigma.
        tokens: Tokens of the call.
    """

    sigma: float
    step: int
    num_steps: int | None
    branch: str
    stream: tuple[Any, ...]
    tokens: ImageTokens


def read_step(
    sigma: Tensor,
    options: Mapping[str, Any],
    seen_calls: Counter[Any],
    tokens: ImageTokens,
) -> ModelStep:
    """Read the step of a model call from its arguments.

    Args:
        sigma: Noise level of each sample, ``[B]``.
        options: ComfyUI's ``transformer_options``.
        seen_calls: Number of calls by sigma and stream. This call is added.
        tokens: Tokens of the call.
    """
    # This is the only wait for the device.
    current = float(sigma.max())
    window = options.get("context_window")
    frames = tuple(getattr(window, "index_list", ()) or ())
    conditions = map(str, options.get("uuids") or options.get("cond_or_uncond") or ())
    stream = (*conditions, frames)
    for key in [key for key in seen_calls if key[0] != current]:
        del seen_calls[key]
    seen_calls[current, stream] += 1
    step, num_steps = _find_step(current, options.get("sample_sigmas"))
    branches = [BRANCHES[i] for i in options.get("cond_or_uncond") or () if i in (0, 1)]
    return ModelStep(
        sigma=current,
        step=step,
        num_steps=num_steps,
        branch="+".join(branches) or "cond",
        stream=(stream, seen_calls[current, stream]),
        tokens=tokens,
    )


def _find_step(sigma: float, sigmas: Tensor | None) -> tuple[int, int | None]:
    """Return the index of the nearest sigma of a run, and the number of steps; 0 and None without sigmas."""
    if sigmas is None or len(sigmas) < 2:
        return 0, None
    step = int((sigmas[:-1].cpu().float() - sigma).abs().argmin())
    return step, len(sigmas) - 1


@dataclass
class ModelCall:
    """One call of a model, which counts its self-attentions over the image.

    Attributes:
        step: Step and tokens of the call.
        previous: Override that was installed before ours. It gets the calls that ours does not compute.
        layer: Index of the current self-attention over the image.
    """

    step: ModelStep
    previous: Attention | None
    layer: int = -1

    def count_layer(self, call: OverrideCall) -> str | None:
        """Count an attention call if it is a self-attention over the image.

        Returns:
            None if it is one, else the reason why it is not.
        """
        queries, keys = call.count_tokens()
        if keys != queries:
            return "cross attention"
        if not call.query.shape == call.key.shape == call.value.shape:
            return "queries, keys and values of different shapes"
        refusal = self.step.tokens.find_refusal(call.transformer_options, queries)
        if refusal is None:
            self.layer += 1
        return refusal


def build_wrapper(
    build_attention: Callable[[ModelCall], Attention],
    seen_calls: Counter[Any],
    finish: Callable[[ModelCall], None],
) -> Callable[..., Any]:
    """Return a wrapper of ComfyUI's ``apply_model`` that overrides the attention of each call.

    Args:
        build_attention: Function that makes the override of one call.
        seen_calls: Number of calls by sigma and stream.
        finish: Function that is called after each call.
    """

    def apply_model(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        options = transformer_options or {}
        model = getattr(getattr(executor, "class_obj", None), "diffusion_model", None)
        # A wrapper of torch.compile puts its own module there.
        model = getattr(model, "_orig_mod", model)
        tokens = read_tokens(x, c_crossattn, model, kwargs)
        step = read_step(t, options, seen_calls, tokens)
        call = ModelCall(step, options.get(OVERRIDE_KEY))
        options = {**options, OVERRIDE_KEY: torch.compiler.disable(build_attention(call))}
        output = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        finish(call)
        return output

    return apply_model
