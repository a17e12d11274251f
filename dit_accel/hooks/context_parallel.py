"""Attention under diffusers' context parallelism.

Each device holds all heads of some tokens. Ulysses exchanges them for all tokens of some heads before an attention, and
back after it. Our attention runs between the two exchanges.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from diffusers.models.attention_dispatch import _templated_context_parallel_attention
from torch import Tensor, nn

from dit_accel_pipelines import TokenLayout, TokenSubset

RING = (
    "ring attention brings the keys of one device at a time, and a sparse plan needs them all: use "
    "ulysses_degree, or disable sparse attention"
)


def ulysses_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    layer: Tensor,
    parallel_config: Any,
) -> Tensor:
    """Return the attention of this device's tokens ``[B, S / N, H, D]`` to all tokens.

    Our attention runs on ``[B, S, H / N, D]``. Diffusers refuses causal masks.

    Raises:
        NotImplementedError: For ring attention.
    """
    if parallel_config.context_parallel_config.ring_degree > 1:
        raise NotImplementedError(RING)

    def attend(  # diffusers fixes the order of the arguments
        _context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        _dropout: float,
        causal: bool,
        scale: float | None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        out: Tensor = torch.ops.dit_accel.attend(query, key, value, mask, causal, scale, layer)
        return out

    out: Tensor = _templated_context_parallel_attention(
        *(query, key, value, mask),
        is_causal=causal,
        scale=scale,
        forward_op=attend,
        backward_op=None,
        _parallel_config=parallel_config,
    )
    return out


def ulysses_degree(processor: Any) -> int:
    """Return the number of devices that share a sequence; 1 without context parallelism."""
    config = getattr(processor, "_parallel_config", None)
    config = getattr(config, "context_parallel_config", None)
    return 1 if config is None else int(config.ulysses_degree)


def splits_text(transformer: nn.Module) -> bool:
    """Return True if diffusers splits text and image separately, not as one sequence."""
    plan = getattr(transformer, "_cp_plan", None) or {}
    return any(
        "encoder_hidden_states" in inputs
        for inputs in plan.values()
        if inputs and isinstance(inputs, dict)
    )


def interleaved(layout: TokenLayout, degree: int, device: torch.device) -> TokenLayout:
    """Return the layout of a joint model's tokens after the exchange.

    The text and the image tokens of each device follow one another. The shares are those of ``torch.tensor_split``.
    """
    tokens = torch.arange(layout.visual_tokens + layout.text_tokens, device=device)
    first = layout.text_tokens if layout.text_first else layout.visual_tokens
    shares = (tokens[:first].tensor_split(degree), tokens[first:].tensor_split(degree))
    gathered_order = torch.cat([share for pair in zip(*shares, strict=True) for share in pair])
    token_index = gathered_order.argsort()
    if not layout.subsets:
        return dataclasses.replace(layout, subsets=(TokenSubset(None, token_index),))
    subsets = (TokenSubset(s.sample_index, token_index[s.token_index]) for s in layout.subsets)
    return dataclasses.replace(layout, subsets=tuple(subsets))


def check_shared(degree: int, guided: bool, guard: str, cached: bool) -> None:
    """Refuse settings that do not work on several devices that share a sequence.

    Raises:
        RuntimeError: With the setting and the way out.
    """
    if degree > 1 and guided:
        raise RuntimeError("perturbed guidance does not work under context parallelism yet")
    if degree > 1 and guard == "on":
        raise RuntimeError(
            "guard 'on' may run a forward again on one device alone: under context parallelism use 'warn'"
        )
    if degree > 1 and cached:
        raise RuntimeError(
            "a step cache may skip a forward on one device alone: under context parallelism leave it out"
        )


def splits_inputs_before(transformer: nn.Module, name: str) -> bool:
    """Return True if diffusers splits the arguments of a forward before the named hook sees them."""
    registry = getattr(transformer, "_diffusers_hook", None)
    names = list(registry.hooks) if registry is not None else []
    outer = names[names.index(name) + 1 :] if name in names else []
    return any(other.startswith("cp_input") for other in outer)
