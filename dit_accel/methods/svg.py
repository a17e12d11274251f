"""Sparse VideoGen (arXiv 2502.01776): each head attends in space or in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Refreshed, check_count, check_share
from dit_accel.methods.blocks import Groups, nearest, run_offsets, static_map
from dit_accel_kernels import BlockMap, sampled_attention, spread_rows

if TYPE_CHECKING:
    from torch import Tensor

Window = Literal["shifted", "published"]


@dataclass(frozen=True, kw_only=True)
class SVG(Refreshed):
    """Attention in a band around the diagonal, in one of two token orders.

    Spatial heads order tokens frame by frame. Temporal heads put all frames of a position side by side. For each head,
    sampled queries decide which order has the smaller error.

    Attributes:
        density: Share of the keys, in [0, 1], including the first frame. The nearest block of keys is always kept. With
            ``window="published"`` the first frame comes on top.
        samples: Number of queries that decide, spread over the whole sequence. The paper's code draws them from the
            first 10,000 tokens.
        block: Tokens in a group of queries. A group of keys has a quarter of that.
        first_frame: True lets every query attend to the first frame.
        window: ``"shifted"`` gives every query the same number of keys: at an end of the order the band is shifted
            inward. ``"published"`` cuts the band there, as the released code does, and makes it as wide as the
            published formula does for ``density``. Its width is rounded up to whole blocks, or down without the first
            frame, as for the released models. Temporal heads then attend to the first places of their own order, not
            to the first frame.
    """

    name: ClassVar[str] = "svg"
    source: ClassVar[str] = "Sparse VideoGen, arXiv 2502.01776"
    spatial: ClassVar[bool] = True

    density: float = 0.3
    samples: int = 64
    block: int = 64
    first_frame: bool = True
    window: Window = "shifted"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density)
        check_count("samples", self.samples)
        check_count("block", self.block)
        if self.window not in get_args(Window):
            raise InvalidSettings(f"window must be shifted or published, got {self.window!r}")

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        with ops.timer("selection", call.query.device):
            key = (self, call.layout, call.query.shape, call.query.device)
            spatial, temporal = ops.shared(
                key, lambda: [self.band(call, temporal) for temporal in (False, True)]
            )
            errors = self.errors(call, [spatial, temporal])
            return Plan(select_maps(errors[1] < errors[0], temporal, spatial))

    def band(self, call: AttentionCall, temporal: bool) -> BlockMap:
        """Return the band in one of the two orders, for all heads."""
        layout, device = call.layout, call.query.device
        per_frame, tokens = layout.height * layout.width, layout.visual_tokens
        block = min(self.block, tokens)
        order = torch.arange(tokens, device=device)
        if temporal:
            order = order.view(layout.frames, per_frame).t().flatten()
        queries = _runs(order, 0, block)
        sink = per_frame if self.first_frame and layout.frames > 1 else 0
        published = self.window == "published"
        key_order = order
        if not published:  # the keys of the first frame come first in both orders
            key_order = order[(order >= sink).to(torch.int8).argsort(stable=True)]
        keys = _runs(key_order, sink, max(1, block // 4))
        place = torch.empty(tokens, dtype=torch.float32, device=device)
        place[order] = torch.arange(tokens, dtype=torch.float32, device=device)
        centers = [_middles(place, groups) for groups in (queries, keys)]
        distance = (centers[0][:, None] - centers[1]).abs()
        in_sink = keys.offsets[:-1] < sink
        if published:
            width = self.width(tokens, layout.text_tokens)
            keep = distance <= distance.amin(-1, keepdim=True).clamp(min=width)
        else:
            far = distance.masked_fill(in_sink, torch.inf)
            keep = nearest(far, keys.sizes, self.density * tokens - sink)
        return static_map(call, queries, keys, keep | in_sink)

    def width(self, tokens: int, text_tokens: int) -> float:
        """Return the largest distance in the published band.

        A band of this width that is cut at both ends, with all rows and columns of the text, has the density. A density
        of 1 keeps all keys.
        """
        if self.density >= 1:
            return tokens
        total = tokens + text_tokens
        share = self.density - 2 * text_tokens / total
        width = total * (1 - math.sqrt(1 - min(max(share, 0.0), 1.0)))
        if self.first_frame:
            return math.ceil(width / self.block) * self.block
        # The released code excludes the limit here.
        return math.floor(width / self.block) * self.block - 0.5

    def errors(self, call: AttentionCall, maps: Sequence[BlockMap]) -> list[Tensor]:
        """Return the squared error of each map on sampled queries, float32 ``[B, H]``."""
        rows = spread_rows(call.tokens, self.samples, call.query.device)
        exact, *outputs = (
            sampled_attention(*heads_first(call), rows, call.scale, block_map)
            for block_map in (None, *maps)
        )
        return [(out - exact).square().mean((-1, -2)) for out in outputs]


def _runs(order: Tensor, sink: int, size: int) -> Groups:
    """Return runs of at most ``size`` tokens of an order. No run crosses index ``sink``."""
    tokens, device = order.numel(), order.device
    head = run_offsets(sink, size, device)[:-1] if sink else order.new_empty(0)
    tail = (
        run_offsets(tokens - sink, size, device) + sink
        if tokens > sink
        else order.new_tensor([sink])
    )
    return Groups(order, torch.cat([head, tail]), order.new_empty(0, 2))


def _middles(place: Tensor, groups: Groups) -> Tensor:
    """Return the mean place of each group's tokens, ``[G]``."""
    sums = torch.nn.functional.pad(place[groups.order].double().cumsum(0), (1, 0))
    return (sums[groups.offsets].diff() / groups.sizes).float()


def select_maps(choice: Tensor, first: BlockMap, second: BlockMap) -> BlockMap:
    """Return the first map for the heads that ``choice`` ``[B, H]`` marks, and the second for the others."""
    picked = []
    for field in fields(BlockMap):
        one, other = getattr(first, field.name), getattr(second, field.name)
        picked.append(torch.where(choice.view(*choice.shape, *[1] * (one.dim() - 2)), one, other))
    return BlockMap(*picked)
