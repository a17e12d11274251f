"""Dense attention by plain matrix products: on CPU in bfloat16 it beats SDPA, so it is part of an
honest baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import check_attention

SCORE_ELEMENTS = 1 << 19  # scores of one piece: 1 MiB of bfloat16, what a core's L2 cache holds


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
) -> Tensor:
    """``softmax(scale Q K^T) V``, a few query rows at a time so that the scores stay in cache.

    Scores are in the query's dtype, as plain products give them: a baseline for speed.

    Args:
        query: ``[B, H, Sq, D]``; key, value: ``[B, H, Sk, D]``; one dtype, one device.
        scale: softmax scale, ``D ** -0.5`` by default.

    Returns:
        ``[B, H, Sq, D]`` in the query's dtype.
    """
    check_attention(query, key, value)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rows = max(16, SCORE_ELEMENTS // key.shape[2])
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            keys, values = key[batch, head].t(), value[batch, head]
            for start in range(0, query.shape[2], rows):
                piece = query[batch, head, start : start + rows] * scale
                out[batch, head, start : start + rows] = torch.softmax(piece @ keys, -1) @ values
    return out
