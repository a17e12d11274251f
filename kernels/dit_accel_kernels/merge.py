"""Merge attention over disjoint sets of keys into attention over their union."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import ContractError, check_no_gradient, check_shape, check_tokens

if TYPE_CHECKING:
    from torch import Tensor


def merge_attention(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge two attention results over disjoint keys, by their log-sum-exps.

    This is the rescaling of FlashAttention-2 (arXiv 2307.08691, section 3.1).

    Args:
        first, second: ``[B, H, S, D]``; one dtype, one device.
        first_lse, second_lse: natural-log log-sum-exps, float32 ``[B, H, S]``; -inf if a query has no
            key.

    Returns:
        out ``[B, H, S, D]`` and log-sum-exp float32 ``[B, H, S]``; 0 and -inf if neither has a key.

    Raises:
        ContractError: if a shape, dtype or device does not fit.

    Example:
        Dense attention from its two halves::

            selected = sparse_attention(query, key, value, block_map)
            skipped = sparse_attention(query, key, value, block_map.complement())
            out, lse = merge_attention(*selected, *skipped)
    """
    check_tokens("first", first)
    for name, tensor, shape in (
        ("second", second, first.shape),
        ("first_lse", first_lse, first.shape[:3]),
        ("second_lse", second_lse, first.shape[:3]),
    ):
        check_shape(name, tensor, shape)
        check_no_gradient(name, tensor)
        if tensor.device != first.device:
            raise ContractError(name, f"on {first.device}", tensor.device)
    if first.is_cuda:
        from dit_accel_kernels.gpu.merge import merge_attention as merge_attention_gpu

        with torch.cuda.device_of(first):
            return merge_attention_gpu(first, first_lse, second, second_lse)
    return merge_attention_reference(first, first_lse, second, second_lse)


def merge_attention_reference(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge two attention results in float32: the oracle of `merge_attention`.

    Arguments and results are those of `merge_attention`; nothing is checked.
    """
    lse = torch.logaddexp(first_lse, second_lse)
    finite_lse = lse.clamp(min=torch.finfo(torch.float32).min)
    weights = [(x - finite_lse).exp()[..., None] for x in (first_lse, second_lse)]
    out = weights[0] * first.float() + weights[1] * second.float()
    return out.to(first.dtype), lse
