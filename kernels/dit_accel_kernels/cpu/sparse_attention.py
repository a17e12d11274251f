"""Variable-block sparse attention on a CPU: query groups are cut into tiles, tiles of like height and
length are packed together, and each pack is three large products' worth of work. A loop over groups
costs several times more: hundreds of small products wait for the second core each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap
from dit_accel_kernels.precision import Precision, rounded_weights, simulate

TILE_ROWS = 256
PACK_BYTES = 1 << 22  # scores of one pack
LIST_KEYS = 1 << 23  # keys listed at a time, at most: 64 MiB of indices
# Packs are of few shapes: oneDNN, which multiplies 16-bit numbers, compiles a product at its first use.
ROWS, COLUMNS = 16, 32  # twice as many for 16-bit numbers

# Scores of bfloat16 inputs are bfloat16, too, as plain products give them, while none is larger than
# this, and float32 otherwise. Half their last place is then 1/8 at most: a single weight may be off by 13 %.
# With scores up to 40 the output was off by .1 to .3 % on attention of a trained model and by 1.3 % on
# independent random numbers; the rounding of the output alone makes .2 %.
LARGEST_ROUNDED_SCORE = 64.0


@dataclass(frozen=True)
class Tiles:
    """Pieces of at most TILE_ROWS queries of one group, and the keys its group selects; int64 ``[N]``.

    Attributes:
        head: batch times heads plus head.
        first_query, queries: place in `query_rows`, and how many.
        first_key, keys: place in `key_rows`, and how many, at least one.
        query_rows, key_rows: which of the `Rows`.
    """

    head: Tensor
    first_query: Tensor
    queries: Tensor
    first_key: Tensor
    keys: Tensor
    query_rows: Tensor
    key_rows: Tensor


@dataclass(frozen=True)
class Pack:
    """Indices of n tiles, a power of two, and the queries and keys that each is padded to."""

    tiles: Tensor
    height: int
    length: int


@dataclass(frozen=True)
class Rows:
    """How ``[B, H, S, D]`` tensors lie as rows ``[B H S, D]``: head after head, or token after token as
    in what ``[B, S, H, D]`` transposed is, which then needs no copy.
    """

    shape: torch.Size
    by_token: bool

    @classmethod
    def of(cls, *tensors: Tensor) -> Rows:
        by_token = all(x.transpose(1, 2).is_contiguous() for x in tensors)
        return cls(tensors[0].shape, by_token)

    def flat(self, x: Tensor) -> Tensor:
        return (x.transpose(1, 2) if self.by_token else x).reshape(-1, *x.shape[3:])

    def whole(self, rows: Tensor) -> Tensor:
        """The inverse of `flat` for a tensor of the query's shape, with or without head_dim."""
        batch, heads, tokens, _ = self.shape
        if self.by_token:
            return rows.view(batch, tokens, heads, *rows.shape[1:]).transpose(1, 2)
        return rows.view(batch, heads, tokens, *rows.shape[1:])

    def index(self, order: Tensor) -> Tensor:
        """Row of each token of ``[B, H, S]``."""
        batch, heads, tokens = order.shape
        head = torch.arange(heads, device=order.device)[:, None]
        sample = torch.arange(batch, device=order.device)[:, None, None]
        if self.by_token:
            return (sample * tokens + order) * heads + head
        return (sample * heads + head) * tokens + order


class Buffers:
    """Memory that the packs of a call use in turn: the first touch of a page of new memory takes longer
    than what is then written there.
    """

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with whatever it held before, valid until the name is taken again."""
        size = math.prod(shape)
        if (name, dtype) not in self.held or len(self.held[name, dtype]) < size:
            self.held[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return self.held[name, dtype][:size].view(shape)

    def rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        """``[n, R, D]`` from rows ``[N, D]``."""
        out = self.take(name, (rows.numel(), x.shape[1]), x.dtype)
        return torch.index_select(x, 0, rows.flatten(), out=out).view(*rows.shape, -1)


@dataclass(frozen=True)
class Call:
    """Inputs as rows, the mean to add to each head's output ``[B H, D]`` if values lack it, and the
    outputs that every pack fills a part of; they have one row more, for what pads a pack.
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
    """The CPU form of `dit_accel_kernels.sparse_attention`; checked arguments."""
    dtype, given = query.dtype, None
    if precision != "full":
        given = simulate(query, key, value, precision)
        query, key, value = given.query, given.key, given.value
    means = None if given is None or given.value_mean is None else given.value_mean.flatten(0, 1)
    rows = Rows.of(query, key, value)
    count = query.shape[:3].numel()
    call = Call(
        query=rows.flat(query),
        key=rows.flat(key),
        value=rows.flat(value),
        value_mean=means,
        scale=scale,
        out=query.new_zeros(count + 1, query.shape[-1], dtype=dtype),
        lse=query.new_full((count + 1,), -torch.inf, dtype=torch.float32) if return_lse else None,
        buffers=Buffers(),
    )
    bytes_each = 4 if return_lse else query.element_size()
    for tiles in tiles_of(block_map, rows):
        for pack in packs_of(tiles, bytes_each):
            _attend(call, tiles, pack)
    out = rows.whole(call.out[:-1])
    if call.lse is None:
        return out, None
    lse = rows.whole(call.lse[:-1]).contiguous()
    return out, lse if given is None else lse + scale * given.lse_shift


def tiles_of(block_map: BlockMap, rows: Rows) -> Iterator[Tiles]:
    """Tiles of some heads at a time, as many as LIST_KEYS allows."""
    query_rows = rows.index(block_map.query_order).flatten(0, 1)  # [B H, Sq]
    key_rows = rows.index(block_map.key_order).flatten(0, 1)
    heads, groups, _ = block_map.selected.flatten(0, 1).shape
    step = max(1, LIST_KEYS // (groups * key_rows.shape[1]))
    for first in range(0, heads, step):
        part = slice(first, first + step)
        yield _tiles_of_heads(
            first,
            block_map.selected.flatten(0, 1)[part],
            query_rows[part],
            block_map.query_offsets.flatten(0, 1)[part],
            key_rows[part],
            block_map.key_offsets.flatten(0, 1)[part],
        )


def _tiles_of_heads(
    first_head: int,
    selected: Tensor,
    query_rows: Tensor,
    query_offsets: Tensor,
    key_rows: Tensor,
    key_offsets: Tensor,
) -> Tiles:
    """Cut the query groups that select a key into tiles and list the selected keys of each group.

    Args:
        first_head: number of the first of n heads.
        selected: ``[n, Gq, Gk]``; query_rows, key_rows: ``[n, S]``, group by group; query_offsets,
            key_offsets: ``[n, G + 1]``.
    """
    heads, groups, _ = selected.shape
    head_of = torch.arange(heads, device=selected.device)[:, None]
    sizes = key_offsets.diff()  # [n, Gk]
    starts = key_offsets[:, :-1] + head_of * key_rows.shape[1]
    head, group, column = selected.nonzero().unbind(1)
    size = sizes[head, column]
    shift = starts[head, column] - (size.cumsum(0) - size)
    place = shift.repeat_interleave(size)
    place += torch.arange(len(place), device=place.device)
    keys = size.new_zeros(heads * groups).index_add_(0, head * groups + group, size)

    queries = query_offsets.diff().flatten()
    first = (query_offsets[:, :-1] + head_of * query_rows.shape[1]).flatten()
    pieces = ((queries + TILE_ROWS - 1) // TILE_ROWS) * (keys > 0)
    of = torch.arange(len(pieces), device=pieces.device).repeat_interleave(pieces)
    piece = torch.arange(len(of), device=of.device) - (pieces.cumsum(0) - pieces)[of]
    height = (queries[of] + pieces[of] - 1) // pieces[of]  # a group's tiles are of even height
    return Tiles(
        first_head + of // groups,
        first[of] + piece * height,
        torch.minimum(height, queries[of] - piece * height),
        (keys.cumsum(0) - keys)[of],
        keys[of],
        query_rows.flatten(),
        key_rows.flatten().index_select(0, place),
    )


def packs_of(tiles: Tiles, bytes_each: int) -> Iterator[Pack]:
    """Tiles that are attended together: of like height, then of like length, with about PACK_BYTES of
    scores.
    """
    coarse = 2 if bytes_each < 4 else 1
    elements = PACK_BYTES // bytes_each
    heights = _rounded_up(tiles.queries, coarse * ROWS)
    order = (heights * (len(tiles.key_rows) + 1) + tiles.keys).argsort(descending=True)
    shapes = torch.stack([heights, _rounded_up(tiles.keys, coarse * COLUMNS)], 1)[order].tolist()
    start = 0
    while start < len(shapes):
        height, length = shapes[start]
        same = sum(
            1 for h, _ in shapes[start : start + elements // (height * length)] if h == height
        )
        count = 1 << max(0, same.bit_length() - 1)
        yield Pack(order[start : start + count], height, length)
        start += count


def _rounded_up(x: Tensor, step: int) -> Tensor:
    return (x + step - 1) // step * step


def _attend(call: Call, tiles: Tiles, pack: Pack) -> None:
    """Write the attention of one pack of n tiles to the output."""
    at = pack.tiles
    query_rows, query_there = _padded(
        tiles.query_rows, tiles.first_query[at], tiles.queries[at], pack.height
    )
    key_rows, key_there = _padded(tiles.key_rows, tiles.first_key[at], tiles.keys[at], pack.length)
    buffers = call.buffers
    query = buffers.rows("query", call.query, query_rows)  # [n, R, D]
    key = buffers.rows("key", call.key, key_rows)  # [n, L, D]
    value = buffers.rows("value", call.value, key_rows)
    scores = scores_of(call, query, key, key_there)  # [n, R, L]
    top = None if call.lse is None else scores.amax(-1)
    weights = torch.softmax(scores, -1, out=scores)
    if call.value_mean is None:
        out = buffers.take("out", query.shape, value.dtype)
        torch.bmm(weights.to(value.dtype), value, out=out)
    else:
        mean = call.value_mean[tiles.head[at], None]
        out = torch.baddbmm(mean, rounded_weights(weights), value)
    rows = query_rows.masked_fill_(~query_there, len(call.out) - 1).flatten()
    call.out.index_copy_(0, rows, out.flatten(0, 1).to(call.out.dtype))
    if call.lse is not None and top is not None:  # the largest weight is exp(largest score - lse)
        lse = top - weights.amax(-1).log()
        call.lse.index_copy_(0, rows, lse.flatten())


def _padded(rows: Tensor, first: Tensor, count: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Rows ``first .. first + count`` of each tile, ``[n, length]``, the last repeated; and which are
    no repetition.
    """
    step = torch.arange(length, device=rows.device)
    place = first[:, None] + torch.minimum(step, count[:, None] - 1)
    return rows.index_select(0, place.flatten()).view_as(place), step < count[:, None]


def scores_of(call: Call, query: Tensor, key: Tensor, there: Tensor) -> Tensor:
    """Scaled scores ``[n, R, L]``, -inf where no key is ``there`` ``[n, L]``: float32, or bfloat16 of
    bfloat16 inputs if all that matter are small enough and no log-sum-exp is wanted.
    """
    shape = (*query.shape[:2], key.shape[1])
    absent = query.new_zeros(there.shape).masked_fill_(~there, -torch.inf)[:, None]
    if query.dtype == torch.bfloat16 and call.lse is None:
        out = call.buffers.take("scores", shape, torch.bfloat16)
        scores = torch.baddbmm(absent, query, key.transpose(1, 2), alpha=call.scale, out=out)
        first = scores[..., 0]  # no row's largest score is below its first
        if max(scores.aminmax().max, -first.amin()) <= LARGEST_ROUNDED_SCORE:
            return scores
    out = call.buffers.take("scores", shape, torch.float32)
    if key.dtype != torch.float32:
        key = call.buffers.take("float32 key", key.shape, torch.float32).copy_(key)
    keys = key.transpose(1, 2)
    return torch.baddbmm(absent.float(), query.float(), keys, alpha=call.scale, out=out)
