"""Variable-block sparse attention on a CPU: the selected keys of a query group are packed, then
multiplied, one group after the other. The cores share every product; Python threads with a head each
were slower in a pipeline, because torch's own threads spin for a while after the layers before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_accel_kernels.attention import SCORE_ELEMENTS
from dit_accel_kernels.contracts import BlockMap
from dit_accel_kernels.precision import Precision, rounded_weights, simulate

# Scores of bfloat16 inputs are bfloat16, too, while none is larger than this: half of
# their last place is then 1/64, so a weight is off by 1.6 % at most. Larger scores are computed in float32.
LARGEST_ROUNDED_SCORE = 8.0


@dataclass(frozen=True)
class _Call:
    """One call: ``[B, H, S, D]`` tensors, and the output that every job fills a part of."""

    query: Tensor
    key: Tensor
    value: Tensor
    value_mean: Tensor | None
    block_map: BlockMap
    scale: float
    out: Tensor
    lse: Tensor | None


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The CPU form of `dit_accel_kernels.sparse_attention`; checked arguments."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    given = None if precision == "full" else simulate(query, key, value, precision)
    if given is not None:
        query, key, value = given.query, given.key, given.value
    means = None if given is None else given.value_mean
    call = _Call(query, key, value, means, block_map, scale, out, lse)
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            _attend(call, (batch, head))
    if lse is not None and given is not None:
        lse += scale * given.lse_shift
    return out, lse


def _attend(call: _Call, at: tuple[int, int]) -> None:
    """Write the attention of one head to the output."""
    block_map, value_mean = call.block_map, call.value_mean
    starts = block_map.query_offsets[at].tolist()
    order = block_map.query_order[at]
    query = call.query[at].index_select(0, order)
    key, value = call.key[at], call.value[at]
    out = value.new_empty(query.shape)
    lse = None if call.lse is None else value.new_empty(len(order), dtype=torch.float32)
    for group, tokens in enumerate(selected_tokens(block_map, at)):
        start, stop = starts[group], starts[group + 1]
        if start == stop:
            continue
        if len(tokens) == 0:
            out[start:stop] = 0
            if lse is not None:
                lse[start:stop] = -torch.inf
            continue
        keys, values = key.index_select(0, tokens), value.index_select(0, tokens)
        step = max(16, SCORE_ELEMENTS // len(tokens))
        for first in range(start, stop, step):
            piece = slice(first, min(first + step, stop))
            scores = scores_of(query[piece], keys, call.scale, lse is not None)
            weights = torch.softmax(scores, -1)
            if value_mean is None:
                torch.mm(weights.to(values.dtype), values, out=out[piece])
            else:
                torch.addmm(value_mean[at], rounded_weights(weights), values, out=out[piece])
            if lse is not None:  # the largest weight is exp(largest score - lse)
                lse[piece] = scores.amax(-1) - weights.amax(-1).log()
    call.out[at].index_copy_(0, order, out.to(call.out.dtype))
    if call.lse is not None and lse is not None:
        call.lse[at].index_copy_(0, order, lse)


def scores_of(query: Tensor, keys: Tensor, scale: float, exact: bool) -> Tensor:
    """Scaled scores ``[R, N]``: float32, or bfloat16 of bfloat16 inputs if all are small enough and
    it need not be ``exact``.
    """
    if query.dtype == torch.bfloat16 and not exact:
        scores = (query * scale) @ keys.t()
        if max(scores.amax(), -scores.amin()) <= LARGEST_ROUNDED_SCORE:
            return scores
    return (query.float() * scale) @ keys.float().t()


def selected_tokens(block_map: BlockMap, at: tuple[int, int]) -> tuple[Tensor, ...]:
    """For each query group of one head, the indices of the key tokens it attends to."""
    sizes = block_map.key_offsets[at].diff()
    columns = block_map.selected[at].repeat_interleave(sizes, dim=1)  # [Gq, Sk]
    group, place = columns.nonzero(as_tuple=True)
    counts = torch.bincount(group, minlength=columns.shape[0]).tolist()
    return block_map.key_order[at][place].split(counts)
