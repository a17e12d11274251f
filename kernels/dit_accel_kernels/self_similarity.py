"""Measure how alike the tokens of each group are.

This is the self-similarity judge of SpargeAttn (arXiv 2502.18137).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import MAX_SCORES, check_tokens
from dit_accel_kernels.kmeans import group_means

if TYPE_CHECKING:
    from torch import Tensor


def self_similarity(tokens: Tensor, order: Tensor, offsets: Tensor, mean: Tensor) -> Tensor:
    """Return the mean cosine between the tokens of each group, each token with itself included.

    The mean of all cosines is the squared norm of the mean unit vector, so it lies between 0 and 1.

    Args:
        tokens: ``[B, H, S, D]``.
        order, offsets: groups as `group_by_label` returns them.
        mean: float32 ``[B, H, 1, D]``, subtracted from the tokens first.

    Returns:
        float32 ``[B, H, G]``; 0 for an empty group, and for a group of zeros.

    Raises:
        ContractError: if the tensor does not fit.
    """
    check_tokens("tokens", tokens)
    batch, heads, num_tokens, head_dim = tokens.shape
    chunk = max(1, min(heads, MAX_SCORES // (batch * num_tokens * head_dim)))
    parts = (tensor.split(chunk, dim=1) for tensor in (tokens, order, offsets, mean))
    similarities = []
    for x, x_order, x_offsets, x_mean in zip(*parts, strict=True):
        units = torch.nn.functional.normalize(x.float() - x_mean, dim=-1)
        similarities.append(group_means(units, x_order, x_offsets).square().sum(-1))
    return torch.cat(similarities, dim=1)
