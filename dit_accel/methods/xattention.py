"""XAttention (arXiv 2503.16428): choose blocks by the sums of their antidiagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Refreshed, check_count, check_share
from dit_accel.methods.blocks import uniform_blocks
from dit_accel_kernels import BlockMap, antidiagonal_mass, select_top_p


@dataclass(frozen=True, kw_only=True)
class XAttention(Refreshed):
    """Attention to uniform blocks of neighboring tokens, chosen by antidiagonal sums.

    The antidiagonal of every ``stride`` x ``stride`` square of scores is summed. Each query block selects the key
    blocks that hold ``threshold`` of the mass.

    Attributes:
        threshold: Share of the estimated mass, in (0, 1].
        stride: Side of the squares. The estimate costs 1 / stride of the full scores.
        block: Tokens in a block, a multiple of the stride.
    """

    name: ClassVar[str] = "xattention"
    source: ClassVar[str] = "XAttention, arXiv 2503.16428"

    threshold: float = 0.9
    stride: int = 8
    block: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold, above=0)
        check_count("stride", self.stride)
        if self.block < 1 or self.block % self.stride:
            raise InvalidSettings(
                f"block must be a multiple of stride {self.stride}, got {self.block}"
            )

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        query, key, _ = heads_first(call)
        stride = min(self.stride, call.tokens)
        runs = -(-call.tokens // stride)
        block = min(self.block, runs * stride)  # a larger one would be padding
        with ops.timer("selection", call.query.device):
            mass = antidiagonal_mass(query, key, block, stride, call.scale)
            selected = select_top_p(mass, self.threshold)
            order, offsets = uniform_blocks(call, block)
            return Plan(BlockMap(selected, order, offsets, order, offsets))
