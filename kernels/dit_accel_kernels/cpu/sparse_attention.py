"""Run variable-block sparse attention on a CPU.

Query groups are cut into tiles. Tiles of similar height and length form a pack, and each pack is a few
large batched products. A loop over groups costs several times more, because of hundreds of small
products that each wait for the second core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.cpu.tiles import Pack, Tiles, cut_tiles, form_packs
from dit_accel_kernels.precision import Precision, round_weights_e4m3, simulate_quantization

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap

# The scores of bfloat16 inputs are bfloat16, as plain products give them, while none is larger than this,
# and float32 otherwise. Half their last place is then at most 1/8, so a single weight may be off by 13 %.
# With scores up to 40 the output was off by 0.1 to 0.3 % on attention of a trained model, and by 1.3 % on
# independent random numbers. Rounding the output alone costs 0.2 %.
MAX_ROUNDED_SCORE = 64.0


@dataclass(frozen=True)
class RowLayout:
    """The order in which ``[B, H, S, D]`` tensors become rows ``[B H S, D]``.

    Attributes:
        shape: shape of the query, ``[B, H, S, D]``.
        by_token: True for token after token, False for head after head. A transposed ``[B, S, H, D]``
            tensor needs no copy by token.
    """

    shape: torch.Size
    by_token: bool

    @classmethod
    def from_tensors(cls, query: Tensor, key: Tensor, value: Tensor) -> RowLayout:
        """Choose the layout that copies none of the tensors, if there is one."""
        by_token = all(x.transpose(1, 2).is_contiguous() for x in (query, key, value))
        return cls(query.shape, by_token)

    def flatten(self, x: Tensor) -> Tensor:
        """Return ``[B, H, S, D]`` as rows ``[B H S, D]``."""
        return (x.transpose(1, 2) if self.by_token else x).reshape(-1, *x.shape[3:])

    def unflatten(self, rows: Tensor) -> Tensor:
        """Return rows of the query's shape, with or without head_dim, as ``[B, H, S, ...]``."""
        batch, heads, tokens, _ = self.shape
        if self.by_token:
            return rows.view(batch, tokens, heads, *rows.shape[1:]).transpose(1, 2)
        return rows.view(batch, heads, tokens, *rows.shape[1:])

    def row_index(self, order: Tensor) -> Tensor:
        """Return the row of each token of an order, int64 ``[B, H, S]``."""
        batch, heads, tokens = order.shape
        head = torch.arange(heads, device=order.device)[:, None]
        sample = torch.arange(batch, device=order.device)[:, None, None]
        if self.by_token:
            return (sample * tokens + order) * heads + head
        return (sample * heads + head) * tokens + order


class Buffers:
    """Memory that the packs of a call share.

    The first touch of a page of new memory takes longer than writing to it later.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor, valid until the same name is requested again."""
        size, key = math.prod(shape), (name, dtype)
        if key not in self._tensors or len(self._tensors[key]) < size:
            self._tensors[key] = torch.empty(size, dtype=dtype, device="cpu")
        return self._tensors[key][:size].view(shape)

    def gather(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        """Return ``[n, R, D]``, the rows ``[n, R]`` of ``[N, D]``."""
        out = self.get(name, (rows.numel(), x.shape[1]), x.dtype)
        return torch.index_select(x, 0, rows.flatten(), out=out).view(*rows.shape, -1)


@dataclass(frozen=True)
class FlatCall:
    """Inputs and outputs of an attention call as rows.

    Attributes:
        query: ``[B H Sq, D]``.
        key, value: ``[B H Sk, D]``.
        value_mean: float32 ``[B H, D]``, added to each head's output; None if values include it.
        scale: softmax scale.
        out: ``[B H Sq + 1, D]``. The last row takes the padding of packs.
        lse: float32 ``[B H Sq + 1]``, or None if it is not requested.
        buffers: memory for intermediate results.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    value_mean: Tensor | None
    scale: float
    out: Tensor
    lse: Tensor | None
    buffers: Buffers


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run `dit_accel_kernels.sparse_attention` on a CPU; arguments are checked there.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``.
        block_map: which groups attend to which.
        scale: softmax scale, above 0.
        precision: a quantized one is simulated.
        return_lse: return the log-sum-exp instead of None.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; log-sum-exp float32 ``[B, H, Sq]``.
    """
    dtype, value_mean, lse_shift = query.dtype, None, None
    if precision != "full":
        simulated = simulate_quantization(query, key, value, precision)
        query, key, value = simulated.query, simulated.key, simulated.value
        value_mean, lse_shift = simulated.value_mean, simulated.lse_shift
    layout = RowLayout.from_tensors(query, key, value)
    num_rows = query.shape[:3].numel()
    call = FlatCall(
        query=layout.flatten(query),
        key=layout.flatten(key),
        value=layout.flatten(value),
        value_mean=None if value_mean is None else value_mean.flatten(0, 1),
        scale=scale,
        out=query.new_zeros(num_rows + 1, query.shape[-1], dtype=dtype),
        lse=query.new_full((num_rows + 1,), -torch.inf, dtype=torch.float32)
        if return_lse
        else None,
        buffers=Buffers(),
    )
    score_bytes = 4 if return_lse else query.element_size()
    query_rows, key_rows = (
        layout.row_index(order) for order in (block_map.query_order, block_map.key_order)
    )
    for tiles in cut_tiles(block_map, query_rows, key_rows):
        for pack in form_packs(tiles, score_bytes):
            _attend_pack(call, tiles, pack)
    out = layout.unflatten(call.out[:-1])
    if call.lse is None:
        return out, None
    lse = layout.unflatten(call.lse[:-1]).contiguous()
    return out, lse if lse_shift is None else lse + scale * lse_shift


def _attend_pack(call: FlatCall, tiles: Tiles, pack: Pack) -> None:
    """Write the attention of the n tiles of a pack to the output."""
    index, buffers = pack.tile_index, call.buffers
    query_rows, query_mask = _pad_rows(
        tiles.query_rows, tiles.first_query[index], tiles.num_queries[index], pack.height
    )
    key_rows, key_mask = _pad_rows(
        tiles.key_rows, tiles.first_key[index], tiles.num_keys[index], pack.length
    )
    query = buffers.gather("query", call.query, query_rows)  # [n, R, D]
    key = buffers.gather("key", call.key, key_rows)  # [n, L, D]
    value = buffers.gather("value", call.value, key_rows)
    scores = compute_scores(call, query, key, key_mask)  # [n, R, L]
    max_score = None if call.lse is None else scores.amax(-1)
    weights = torch.softmax(scores, -1, out=scores)
    if call.value_mean is None:
        out = buffers.get("out", query.shape, value.dtype)
        torch.bmm(weights.to(value.dtype), value, out=out)
    else:
        mean = call.value_mean[tiles.head[index], None]
        out = torch.baddbmm(mean, round_weights_e4m3(weights), value)
    rows = query_rows.masked_fill_(~query_mask, len(call.out) - 1).flatten()
    call.out.index_copy_(0, rows, out.flatten(0, 1).to(call.out.dtype))
    if call.lse is not None and max_score is not None:
        # The largest weight is exp(largest score - lse).
        lse = max_score - weights.amax(-1).log()
        call.lse.index_copy_(0, rows, lse.flatten())


def _pad_rows(rows: Tensor, first: Tensor, count: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` rows of each tile from ``first`` on, padded by repeating the last one.

    Args:
        rows: int64 ``[P]``.
        first, count: int64 ``[n]``.
        length: length to pad to.

    Returns:
        rows int64 ``[n, length]``, and a mask bool ``[n, length]`` that is False for padding.
    """
    step = torch.arange(length, device=rows.device)
    positions = first[:, None] + torch.minimum(step, count[:, None] - 1)
    return rows.index_select(0, positions.flatten()).view_as(positions), step < count[:, None]


def compute_scores(call: FlatCall, query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
    """Compute scaled scores, -inf for padding.

    They are float32, or bfloat16 if the inputs are bfloat16, no log-sum-exp is requested and no score
    that matters exceeds MAX_ROUNDED_SCORE.

    Args:
        call: scale and buffers.
        query: ``[n, R, D]``.
        key: ``[n, L, D]``.
        key_mask: bool ``[n, L]``, False for padding.

    Returns:
        ``[n, R, L]``.
    """
    shape = (*query.shape[:2], key.shape[1])
    bias = query.new_zeros(key_mask.shape).masked_fill_(~key_mask, -torch.inf)[:, None]
    if query.dtype == torch.bfloat16 and call.lse is None:
        out = call.buffers.get("scores", shape, torch.bfloat16)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=call.scale, out=out)
        # The largest score of a row lies between its first one and the largest of all. Scores far
        # below it do not matter.
        first = scores[..., 0]
        if max(scores.aminmax().max, -first.amin()) <= MAX_ROUNDED_SCORE:
            return scores
    out = call.buffers.get("scores", shape, torch.float32)
    if key.dtype != torch.float32:
        key = call.buffers.get("float32 key", key.shape, torch.float32).copy_(key)
    keys = key.transpose(1, 2)
    return torch.baddbmm(bias.float(), query.float(), keys, alpha=call.scale, out=out)
