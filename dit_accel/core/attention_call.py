"""One attention call of a transformer, where it happens, and a method's plan for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels import BlockMap, Precision, Skipped
    from dit_accel_pipelines import TokenLayout


@dataclass(frozen=True, kw_only=True)
class CallContext:
    """Position of an attention call in a run.

    Attributes:
        step: Denoising step, counted from 0.
        num_steps: Number of denoising steps; None if nothing reports it.
        layer: Index of the attention among those of its transformer.
        num_layers: Number of attentions of the transformer.
        component: Name of the transformer in its pipeline, one of `dit_accel_pipelines.COMPONENTS`.
        branch: Name of the forward within the step: ``"cond"``, ``"uncond"``, or ``"call0"``, ``"call1"``, ... if
            the pipeline does not name its forwards.
    """

    step: int = 0
    num_steps: int | None = None
    layer: int = 0
    num_layers: int = 1
    component: str = "transformer"
    branch: str = "cond"


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """One self-attention call of a transformer.

    Attributes:
        query, key, value: Tensors ``[B, S, H, D]``, after normalization and RoPE.
        scale: Softmax scale.
        context: Where in the run the call happens.
        layout: Where the visual tokens are.
        precision: Precision of the sparse products.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    context: CallContext
    layout: TokenLayout
    precision: Precision = "full"

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return self.query.shape[1]

    def samples(self) -> list[AttentionCall]:
        """Split the call into calls without padding, whose tokens lie in the order of their layouts.

        Returns:
            The call itself, or one call for each subset of its layout.
        """
        if not self.layout.subsets:
            return [self]
        calls = []
        for subset in self.layout.subsets:
            query, key, value = (subset.gather(t) for t in (self.query, self.key, self.value))
            text_tokens = query.shape[1] - self.layout.visual_tokens
            layout = replace(self.layout, text_tokens=text_tokens, subsets=())
            calls.append(replace(self, query=query, key=key, value=value, layout=layout))
        return calls

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put the attention of the `samples` together, ``[B, S, H, D]``; padding gets zeros."""
        if not self.layout.subsets:
            return outputs[0]
        joined = self.query.new_zeros(self.query.shape)
        for subset, output in zip(self.layout.subsets, outputs, strict=True):
            subset.scatter(joined, output)
        return joined

    def visual(self) -> AttentionCall:
        """Return the same call without its text tokens."""
        layout = self.layout
        if not layout.text_tokens:
            return self
        first = layout.text_tokens if layout.text_first else 0
        tensors = (self.query, self.key, self.value)
        query, key, value = (t.narrow(1, first, layout.visual_tokens) for t in tensors)
        return replace(self, query=query, key=key, value=value)


@dataclass(frozen=True)
class Plan:
    """Decision of a method for a call. It holds plain tensors, so it can be stored, reused and drawn.

    Attributes:
        block_map: The blocks to compute.
        skipped: What stands for the key groups that a query group does not select, as in
            `dit_accel_kernels.sparse_attention`. None leaves them out.
        density: Share of the (query, key) pairs that are computed, a float32 scalar on the device.
    """

    block_map: BlockMap
    skipped: Skipped | None = None
    density: Tensor | None = None
