"""Variable-block sparse attention on a CPU: query groups are cut into tiles, tiles of like height and
length are packed together, and each pack is three large products' worth of work. A loop over groups
costs several times more: hundreds of small products wait for the second core each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap
from dit_accel_kernels.precision import Precision, rounded_weights, simulate

TILE_ROWS = 128
PACK_BYTES = 1 << 20  # scores of one pack: what the cores' L2 caches hold

# Scores of bfloat16 inputs are bfloat16, too, while none is larger than this, and float32 otherwise.
# Half of their last place is then 1/8 at most. On attention of a trained model with scores up to 37 the
# output is off by .1 to .3 %, the rounding of a bfloat16 output itself by .17 %.
LARGEST_ROUNDED_SCORE = 64.0


@dataclass(frozen=True)
class Tiles:
    """Pieces of at most TILE_ROWS queries of one group, and the keys its group selects; int64 ``[N]``.

    Attributes:
        head: batch times heads plus head.
        first_query, queries: place in `query_rows`, and how many.
        first_key, keys: place in `key_rows`, and how many, at least one.
        query_rows, key_rows: rows of the flattened ``[B H S, D]`` tensors.
    """

    head: Tensor
    first_query: Tensor
    queries: Tensor
    first_key: Tensor
    keys: Tensor
    query_rows: Tensor
    key_rows: Tensor


@dataclass(frozen=True)
class Call:
    """Inputs as rows ``[B H S, D]``, the mean to add to each head's output ``[B H, D]`` if values lack
    it, and the outputs that every pack fills a part of.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    value_mean: Tensor | None
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
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    lse = query.new_full(query.shape[:3], -torch.inf, dtype=torch.float32) if return_lse else None
    given = None if precision == "full" else simulate(query, key, value, precision)
    if given is not None:
        query, key, value = given.query, given.key, given.value
    means = None if given is None or given.value_mean is None else given.value_mean.flatten(0, 1)
    call = Call(
        query=query.reshape(-1, query.shape[-1]),
        key=key.reshape(-1, key.shape[-1]),
        value=value.reshape(-1, value.shape[-1]),
        value_mean=means,
        scale=scale,
        out=out.flatten(0, 2),
        lse=None if lse is None else lse.flatten(),
    )
    tiles = tiles_of(block_map)
    for pack in packs_of(tiles, PACK_BYTES // query.element_size()):
        _attend(call, tiles, pack)
    if lse is not None and given is not None:
        lse += scale * given.lse_shift
    return out, lse


def tiles_of(block_map: BlockMap) -> Tiles:
    """Cut the query groups that select a key into tiles and list the selected keys of each group."""
    batch_heads = block_map.selected.shape[0] * block_map.selected.shape[1]
    head_of = torch.arange(batch_heads)[:, None]
    sizes = block_map.key_offsets.flatten(0, 1).diff()  # [B H, Gk]
    starts = block_map.key_offsets.flatten(0, 1)[:, :-1] + head_of * block_map.key_order.shape[-1]
    selected = block_map.selected.flatten(0, 1)  # [B H, Gq, Gk]
    head, group, column = selected.nonzero().unbind(1)
    size = sizes[head, column]
    shift = starts[head, column] - (size.cumsum(0) - size)
    place = shift.repeat_interleave(size)
    place += torch.arange(len(place))
    groups = selected.shape[1]
    keys = size.new_zeros(batch_heads * groups).index_add_(0, head * groups + group, size)

    key_rows = block_map.key_order.flatten(0, 1) + head_of * block_map.key_order.shape[-1]
    query_rows = block_map.query_order.flatten(0, 1) + head_of * block_map.query_order.shape[-1]
    offsets = block_map.query_offsets.flatten(0, 1)
    queries = offsets.diff().flatten()
    first = (offsets[:, :-1] + head_of * block_map.query_order.shape[-1]).flatten()
    pieces = ((queries + TILE_ROWS - 1) // TILE_ROWS) * (keys > 0)
    of = torch.arange(len(pieces)).repeat_interleave(pieces)
    piece = torch.arange(len(of)) - (pieces.cumsum(0) - pieces)[of]
    height = (queries[of] + pieces[of] - 1) // pieces[of]  # a group's tiles are of even height
    return Tiles(
        of // groups,
        first[of] + piece * height,
        torch.minimum(height, queries[of] - piece * height),
        (keys.cumsum(0) - keys)[of],
        keys[of],
        query_rows.flatten(),
        key_rows.flatten()[place],
    )


def packs_of(tiles: Tiles, elements: int) -> Iterator[Tensor]:
    """Indices of tiles that are attended together, ``[n]``: of like height, then of like length, with
    about that many scores.
    """
    order = (tiles.queries * (int(tiles.key_rows.numel()) + 1) + tiles.keys).argsort(
        descending=True
    )
    queries, keys = tiles.queries[order].tolist(), tiles.keys[order].tolist()
    start, longest = 0, 0
    for place, length in enumerate(keys):
        longest = max(longest, length)
        if place > start and queries[start] * longest * (place - start + 1) > elements:
            yield order[start:place]
            start, longest = place, length
    if start < len(keys):
        yield order[start:]


def _attend(call: Call, tiles: Tiles, pack: Tensor) -> None:
    """Write the attention of one pack of n tiles to the output."""
    query_rows, query_there = _padded(
        tiles.query_rows, tiles.first_query[pack], tiles.queries[pack]
    )
    key_rows, key_there = _padded(tiles.key_rows, tiles.first_key[pack], tiles.keys[pack])
    query = _taken(call.query, query_rows)  # [n, R, D]
    key, value = _taken(call.key, key_rows), _taken(call.value, key_rows)  # [n, L, D]
    scores = scores_of(query, key, key_there, call.scale, call.lse is not None)  # [n, R, L]
    weights = torch.softmax(scores, -1)
    if call.value_mean is None:
        out = torch.bmm(weights.to(value.dtype), value)
    else:
        mean = call.value_mean[tiles.head[pack], None]
        out = torch.baddbmm(mean, rounded_weights(weights), value)
    rows = query_rows[query_there]
    call.out.index_copy_(0, rows, out[query_there].to(call.out.dtype))
    if call.lse is not None:  # the largest weight is exp(largest score - lse)
        lse = scores.amax(-1) - weights.amax(-1).log()
        call.lse.index_copy_(0, rows, lse[query_there])


def _padded(rows: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``first .. first + count`` of each tile, ``[n, longest]``, the last repeated; and which are
    no repetition.
    """
    step = torch.arange(int(count.max()))
    return rows[first[:, None] + torch.minimum(step, count[:, None] - 1)], step < count[:, None]


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """``[n, R, D]`` from rows ``[N, D]``."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, -1)


def scores_of(query: Tensor, key: Tensor, there: Tensor, scale: float, exact: bool) -> Tensor:
    """Scaled scores ``[n, R, L]``, -inf where no key is ``there`` ``[n, L]``: float32, or bfloat16 of
    bfloat16 inputs if all that matter are small enough and it need not be ``exact``.
    """
    absent = query.new_zeros(there.shape).masked_fill_(~there, -torch.inf)[:, None]
    if query.dtype == torch.bfloat16 and not exact:
        scores = torch.baddbmm(absent, query, key.transpose(1, 2), alpha=scale)
        first = scores[..., 0]  # no row's largest score is below its first
        if max(scores.aminmax().max, -first.amin()) <= LARGEST_ROUNDED_SCORE:
            return scores
    return torch.baddbmm(absent.float(), query.float(), key.float().transpose(1, 2), alpha=scale)
