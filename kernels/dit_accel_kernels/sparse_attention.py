"""Variable-block sparse attention with log-sum-exp: groups of queries attend to the groups of keys
a BlockMap names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.attention import SCORE_ELEMENTS
from dit_accel_kernels.contracts import BlockMap, check_attention, check_block_map


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    return_lse: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the selected (query group, key group) pairs.

    The keys that a query group selects are packed before they are multiplied, so no group is padded
    and no buffer of S x S elements exists.

    Args:
        query: ``[B, H, Sq, D]``; key, value: ``[B, H, Sk, D]``; one dtype, one device.
        block_map: which groups attend to which.
        scale: softmax scale, ``D ** -0.5`` by default.
        return_lse: without it the log-sum-exp is None, which saves two passes over the scores.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype and original token order, and the natural-log
        log-sum-exp of the scaled scores, float32 ``[B, H, Sq]``. A query without any selected key
        gets out 0 and log-sum-exp -inf.

    Raises:
        ContractError: naming the argument that does not fit.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            at = (batch, head)
            order = block_map.query_order[at]
            sorted_lse = query.new_full(order.shape, -torch.inf, dtype=torch.float32)
            rows = query[at].index_select(0, order).float() * scale
            sorted_out = _attend_one_head(
                rows, key[at], value[at], block_map, at, sorted_lse if return_lse else None
            )
            out[at].index_copy_(0, order, sorted_out)
            if lse is not None:
                lse[at].index_copy_(0, order, sorted_lse)
    return out, lse


def _attend_one_head(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    at: tuple[int, int],
    lse: Tensor | None,
) -> Tensor:
    """Attention of scaled float32 query rows ``[Sq, D]``, group by group; fills ``lse`` ``[Sq]`` if given.

    Scores and softmax are float32; the weights are rounded to the value's dtype for the product.
    """
    out = value.new_zeros(rows.shape)
    starts = block_map.query_offsets[at].tolist()
    for group, tokens in enumerate(selected_tokens(block_map, at)):
        start, stop = starts[group], starts[group + 1]
        if start == stop or len(tokens) == 0:
            continue
        keys, values = key.index_select(0, tokens).float().t(), value.index_select(0, tokens)
        step = max(16, SCORE_ELEMENTS // len(tokens))
        for first in range(start, stop, step):
            piece = slice(first, min(first + step, stop))
            scores = rows[piece] @ keys  # [rows, selected keys]
            weights = torch.softmax(scores, -1)
            torch.mm(weights.to(values.dtype), values, out=out[piece])
            if lse is not None:  # the largest weight is exp(largest score - lse)
                lse[piece] = scores.amax(-1) - weights.amax(-1).log()
    return out


def selected_tokens(block_map: BlockMap, at: tuple[int, int]) -> tuple[Tensor, ...]:
    """For each query group of one head, the indices of the key tokens it attends to."""
    sizes = block_map.key_offsets[at].diff()
    columns = block_map.selected[at].repeat_interleave(sizes, dim=1)  # [Gq, Sk]
    group, place = columns.nonzero(as_tuple=True)
    counts = torch.bincount(group, minlength=columns.shape[0]).tolist()
    return block_map.key_order[at][place].split(counts)


def sparse_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The oracle of `sparse_attention`: a token mask over dense float32 scores. Quadratic in
    memory.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query.float() @ key.float().transpose(-1, -2)) * scale  # [B, H, Sq, Sk]
    scores = scores.masked_fill(~block_map.to_mask(), -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp(min=torch.finfo(torch.float32).min)[..., None]).exp()
    return (weights @ value.float()).to(query.dtype), lse
