"""Attention calls and model calls in the form of ComfyUI, without ComfyUI."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dit_accel.comfyui.image_tokens import ImageTokens, read_tokens
from dit_accel.comfyui.model_call import ModelCall, read_step

TOKENS = 3 * 4 * 6
SIGMAS = torch.linspace(1, 0, 5)


def dense_attention(
    q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **_
) -> Tensor:
    """Compute attention as ComfyUI does."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def make_options(ids: tuple[Any, ...] = ("c",), **others: Any) -> dict:
    """Return ComfyUI's ``transformer_options`` of a conditional call."""
    return {"sample_sigmas": SIGMAS, "uuids": list(ids), "cond_or_uncond": [0], **others}


def make_call(
    step: int = 0,
    options: dict | None = None,
    seen_calls: Counter | None = None,
    previous: Any = None,
    tokens: ImageTokens | None = None,
) -> ModelCall:
    """Return a model call at a step. A token is 2 x 2 latent pixels."""
    model_step = read_step(
        SIGMAS[step : step + 1],
        options or make_options(),
        Counter() if seen_calls is None else seen_calls,
        tokens or read_tokens(torch.zeros(1, 4, 3, 8, 12)),
    )
    return ModelCall(model_step, previous)


def make_tensors(
    batch: int = 2, tokens: int = TOKENS, split: bool = False, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 2, tokens, 16) if split else (batch, tokens, 32)
    return [torch.randn(shape, generator=generator) for _ in range(3)]
