"""Run dense attention by plain matrix products.

On a CPU in bfloat16 this beats SDPA, so it is part of an honest baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import check_attention

if TYPE_CHECKING:
    from torch import Tensor

# Scores of one chunk of rows: 1 MiB of bfloat16, which fits a core's L2 cache.
CHUNK_SCORES = 1 << 19


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
) -> Tensor:
    """Compute ``softmax(scale Q K^T) V``, a few query rows at a time.

    The scores of a chunk stay in cache. They have the query's dtype, as plain products give them,
    because this is a baseline for speed.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``, of the query's dtype and device.
        scale: softmax scale, ``D ** -0.5`` by default.

    Returns:
        ``[B, H, Sq, D]`` in the query's dtype.

    Raises:
        ContractError: if a shape, dtype or device does not fit.
    """
    check_attention(query, key, value)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    chunk = rows_per_chunk(key.shape[2])
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            k_transposed, v = key[batch, head].t(), value[batch, head]
            for start in range(0, query.shape[2], chunk):
                q = query[batch, head, start : start + chunk] * scale
                out[batch, head, start : start + chunk] = torch.softmax(q @ k_transposed, -1) @ v
    return out


def rows_per_chunk(num_keys: int) -> int:
    """Return how many query rows to process at a time, at least 16."""
    return max(16, CHUNK_SCORES // num_keys)
