"""Dense attention computed in another way: how far dense attention is from itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dit_accel import AttentionCall, Method
from dit_accel.core.ops import Ops, heads_first
from dit_accel.methods import Attended
from dit_accel_kernels import dense_attention


@dataclass(frozen=True)
class RoundedAttention(Method):
    """Dense attention of tensors rounded to bfloat16."""

    name: ClassVar[str] = "rounded-attention"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended:
        query, key, value = (tensor.bfloat16() for tensor in heads_first(call))
        attend = torch.nn.functional.scaled_dot_product_attention
        out = attend(query, key, value, scale=call.scale)
        return Attended(out.transpose(1, 2).to(call.query.dtype), torch.ones(()))


@dataclass(frozen=True)
class OtherBackend(Method):
    """Dense attention that sums in another order than the pipeline's own.

    It computes plain matrix products on a CPU and calls SDPA's memory-efficient kernel on a GPU.
    """

    name: ClassVar[str] = "other-backend"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended:
        tensors = heads_first(call)
        if call.query.is_cuda:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            attend = torch.nn.functional.scaled_dot_product_attention
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
                out = attend(*tensors, scale=call.scale)
        else:
            out = dense_attention(*tensors, scale=call.scale)
        return Attended(out.transpose(1, 2), torch.ones(()))
