"""Variable-block sparse attention with log-sum-exp: groups of queries attend to the groups of keys
a BlockMap names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.attention import SCORE_ELEMENTS
from dit_accel_kernels.contracts import (
    BlockMap,
    check_attention,
    check_block_map,
    check_scale,
)
from dit_accel_kernels.precision import Precision, check_precision, rounded_weights, simulate
from dit_accel_kernels.quantized_attention import quantized_attention_reference


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
    return_lse: bool = True,
    max_share: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the selected (query group, key group) pairs.

    The keys that a query group selects are packed before they are multiplied, so no group is padded
    and no buffer of S x S elements exists.

    Args:
        query: ``[B, H, Sq, D]``; key, value: ``[B, H, Sk, D]``; one dtype, one device.
        block_map: which groups attend to which.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        precision: see `dit_accel_kernels.precision`; on CPU a quantized one is simulated.
        max_share: a promise that no query group selects more than this share of the keys: bounds
            the memory of the kernel's key lists. Keys beyond it are left out.
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
    check_precision(precision, query.device)
    scale = check_scale(query, scale)
    if query.is_cuda:
        from dit_accel_kernels.gpu.quantize import quantize
        from dit_accel_kernels.gpu.sparse_attention import sparse_attention as on_gpu

        given = None if precision == "full" else quantize(query, key, value, precision != "int8")
        return on_gpu(
            query, key, value, block_map, scale, return_lse, quantized=given, max_share=max_share
        )
    return _eager(query, key, value, block_map, scale, precision, return_lse)


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """One head and query group after the other."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    given = None if precision == "full" else simulate(query, key, value, precision)
    if given is not None:
        query, key, value = given.query, given.key, given.value
    means = None if given is None else given.value_mean
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            at = (batch, head)
            order = block_map.query_order[at]
            sorted_lse = query.new_full(order.shape, -torch.inf, dtype=torch.float32)
            rows = query[at].index_select(0, order).float() * scale
            sorted_out = _attend_one_head(
                rows,
                key[at],
                value[at],
                None if means is None else means[at],
                block_map,
                at,
                sorted_lse if return_lse else None,
            )
            out[at].index_copy_(0, order, sorted_out.to(out.dtype))
            if lse is not None:
                lse[at].index_copy_(0, order, sorted_lse)
    if lse is not None and given is not None:
        lse += scale * given.lse_shift
    return out, lse


def _attend_one_head(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    value_mean: Tensor | None,
    block_map: BlockMap,
    at: tuple[int, int],
    lse: Tensor | None,
) -> Tensor:
    """Attention of scaled float32 query rows ``[Sq, D]``, group by group; fills ``lse`` ``[Sq]`` if given.

    Scores and softmax are float32; the weights are rounded to the value's dtype for the product, or
    to e4m3 if there is a ``value_mean``, which is added to the output.
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
            if value_mean is None:
                torch.mm(weights.to(values.dtype), values, out=out[piece])
            else:
                torch.addmm(value_mean, rounded_weights(weights), values, out=out[piece])
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
    precision: Precision = "full",
) -> tuple[Tensor, Tensor]:
    """The oracle of `sparse_attention`: a token mask over dense float32 scores. Quadratic in
    memory.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    return quantized_attention_reference(
        query, key, value, precision=precision, scale=scale, mask=block_map.to_mask()
    )
