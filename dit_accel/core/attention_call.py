"""What passes between the seam, the session and a method: one attention call, and the plan for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dit_accel_kernels import BlockMap, Precision
from dit_accel_pipelines import TokenLayout


@dataclass(frozen=True)
class AttentionCall:
    """One self-attention call of a transformer.

    Attributes:
        query, key, value: ``[B, S, H, D]``, after norm and RoPE.
        scale: softmax scale.
        layer, num_layers: index of this attention among those of its transformer.
        step, num_steps: denoising step counted from 0; num_steps is None where nothing tells it.
        branch: which forward of the step this is (``"cond"``, ``"uncond"``, or ``"call0"``,
        ``"call1"``, ...).
        layout: where the visual tokens are.
        precision: what sparse products run in.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    layer: int
    num_layers: int
    step: int
    num_steps: int | None
    branch: str
    layout: TokenLayout
    precision: Precision = "full"

    @property
    def tokens(self) -> int:
        return self.query.shape[1]

    def samples(self) -> list[AttentionCall]:
        """Calls whose tokens all count and lie as their layouts say: this one, or one for each subset of it."""
        layout = self.layout
        if not layout.subsets:
            return [self]
        tensors = (self.query, self.key, self.value)
        found = []
        for subset in layout.subsets:
            query, key, value = (subset.gather(t) for t in tensors)
            own = replace(layout, text_tokens=query.shape[1] - layout.visual_tokens, subsets=())
            found.append(replace(self, query=query, key=key, value=value, layout=own))
        return found

    def joined(self, outs: Sequence[Tensor]) -> Tensor:
        """The attention of all tokens out of that of the `samples`; zero for padding."""
        if not self.layout.subsets:
            return outs[0]
        found = torch.zeros_like(self.query)
        for subset, out in zip(self.layout.subsets, outs, strict=True):
            subset.scatter(found, out)
        return found

    def visual(self) -> AttentionCall:
        """The same call without its text tokens."""
        layout = self.layout
        if not layout.text_tokens:
            return self
        first = layout.text_tokens if layout.text_first else 0
        tensors = (self.query, self.key, self.value)
        query, key, value = (t.narrow(1, first, layout.visual_tokens) for t in tensors)
        return replace(self, query=query, key=key, value=value)


@dataclass(frozen=True)
class Plan:
    """What a method decided for a call. Plain tensors, so it can be kept, reused and drawn.

    Attributes:
        block_map: the blocks to compute.
        skipped: what becomes of the key groups that a query group does not select: nothing, or each
            stands as its centroid, with its variance in the logit (``"second-order"``) or without.
        density: share of (query, key) pairs that are computed, float32 scalar on the device.
    """

    block_map: BlockMap
    skipped: Literal["drop", "centroid", "second-order"] = "drop"
    density: Tensor | None = None
