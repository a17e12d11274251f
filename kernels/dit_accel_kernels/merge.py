"""Attention over a union of keys from attention over its parts."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import ContractError, check_tokens


def merge_attention(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge two attention results over disjoint keys, by their log-sum-exps (FlashAttention-2's
    rescaling, arXiv 2307.08691, section 3.1).

    Args:
        first, second: ``[B, H, S, D]``; one dtype, one device.
        first_lse, second_lse: natural-log log-sum-exps, float32 ``[B, H, S]``; -inf: no key.

    Returns:
        out ``[B, H, S, D]`` and log-sum-exp ``[B, H, S]``; where both have no key, 0 and -inf.

    Raises:
        ContractError: naming the argument that does not fit.
    """
    check_tokens("first", first)
    for name, tensor, shape in (
        ("second", second, first.shape),
        ("first_lse", first_lse, first.shape[:3]),
        ("second_lse", second_lse, first.shape[:3]),
    ):
        if tensor.shape != shape:
            raise ContractError(name, f"of shape {list(shape)}", list(tensor.shape))
        if tensor.device != first.device:
            raise ContractError(name, f"on {first.device}", tensor.device)
    if first.is_cuda:
        from dit_accel_kernels.gpu.merge import merge_attention as on_gpu

        with torch.cuda.device_of(first):
            return on_gpu(first, first_lse, second, second_lse)
    return merge_attention_reference(first, first_lse, second, second_lse)


def merge_attention_reference(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """The oracle of `merge_attention`."""
    lse = torch.logaddexp(first_lse, second_lse)
    safe = lse.clamp(min=torch.finfo(torch.float32).min)
    weights = [(x - safe).exp()[..., None] for x in (first_lse, second_lse)]
    out = weights[0] * first.float() + weights[1] * second.float()
    return out.to(first.dtype), lse
