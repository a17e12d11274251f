"""XAttention (arXiv 2503.16428): choose blocks by the sums of their antidiagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Refreshed, check_count, check_share
from dit_accel.methods.blocks import uniform_blocks
from dit_accel_kernels import BlockMap, antidiagonal_mass, select_top_p

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class XAttention(Refreshed):
    """Attention to uniform blocks of neighboring tokens, chosen by antidiagonal sums.

    The antidiagonal of every ``stride`` x ``stride`` square of scores is summed. Each query block selects the key
    blocks that hold ``threshold`` of the mass.

    Attributes:
        threshold: Share of the estimated mass, in (0, 1]. A sequence has one share for each head.
        stride: Side of the squares. The estimate costs 1 / stride of the full scores.
        block: Tokens in a block, a multiple of the stride.
        keep_sink: True also selects the first key block for every query block. Without a causal mask the released code
            always does so.
        keep_recent: True also selects the key block of the query block's own tokens.
    """

    name: ClassVar[str] = "xattention"
    source: ClassVar[str] = "XAttention, arXiv 2503.16428"

    threshold: float | tuple[float, ...] = 0.9
    stride: int = 8
    block: int = 128
    keep_sink: bool = False
    keep_recent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, list):
            object.__setattr__(self, "threshold", tuple(self.threshold))
        if not self.thresholds:
            raise InvalidSettings(
                "threshold must be a share, or one for each head, got an empty sequence"
            )
        for share in self.thresholds:
            check_share("threshold", share, above=0)
        check_count("stride", self.stride)
        if self.block < 1 or self.block % self.stride:
            raise InvalidSettings(
                f"block must be a multiple of stride {self.stride}, got {self.block}"
            )

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Return one threshold for all heads, or one for each head."""
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        query, key, _ = heads_first(call)
        stride = min(self.stride, call.tokens)
        runs = -(-call.tokens // stride)
        block = min(self.block, runs * stride)  # a larger one would be padding
        with ops.timer("selection", call.query.device):
            mass = antidiagonal_mass(query, key, block, stride, call.scale)
            selected = select_top_p(mass, self.top_p(call))
            if self.keep_sink:
                selected[..., 0] = True
            if self.keep_recent:
                selected.diagonal(dim1=-2, dim2=-1).fill_(True)
            order, offsets = uniform_blocks(call, block)
            return Plan(BlockMap(selected, order, offsets, order, offsets))

    def top_p(self, call: AttentionCall) -> float | Tensor:
        """Return the threshold of all heads, or those of the heads, ``[H, 1, 1]``."""
        shares, heads = self.thresholds, call.query.shape[2]
        if len(shares) not in (1, heads):
            raise InvalidSettings(
                f"threshold has {len(shares)} shares for {heads} heads: give one for all, or {heads}"
            )
        if len(shares) == 1:
            return shares[0]
        # Filled on the device, because a copy from the host would wait for it.
        filled = [torch.full((1, 1, 1), share, device=call.query.device) for share in shares]
        return torch.cat(filled)
