"""Inputs of one self-attention call of the perturbed forward. All tensors are ``[B, S, H, D]``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOGITS = 1 << 26
"""Logits that are in memory at a time: 256 MiB of float32."""


@dataclass(frozen=True)
class JointTokens:
    """Queries, keys and values after norm and RoPE, and the place of the text tokens among them.

    Attributes:
        query, key, value: ``[B, S, H, D]``.
        scale: Softmax scale.
        mask: Additive or boolean mask (True: attend), broadcastable to ``[B, H, S, S]``, or None.
        text: Number of text tokens.
        text_first: True if the text tokens come before the visual tokens.
        grid: Frames, rows and columns of the visual tokens, which are in raster order; None if unknown.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    mask: Tensor | None = None
    text: int = 0
    text_first: bool = False
    grid: tuple[int, int, int] | None = None

    @property
    def text_range(self) -> slice:
        """Return the positions of the text tokens."""
        size = self.query.shape[1]
        return slice(0, self.text) if self.text_first else slice(size - self.text, size)

    @property
    def visual_range(self) -> slice:
        """Return the positions of the visual tokens."""
        size = self.query.shape[1]
        return slice(self.text, size) if self.text_first else slice(0, size - self.text)

    def select_heads(self, heads: Tensor) -> JointTokens:
        """Return the tokens of some heads; ``heads`` is int64 ``[h]``."""
        mask = self.mask
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            mask = mask.index_select(1, heads)
        query, key, value = (t.index_select(2, heads) for t in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value, mask=mask)

    def temper(self, factor: float) -> JointTokens:
        """Return the same tokens with all logits, and an additive mask, multiplied by a factor above 0."""
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask * factor
        return replace(self, scale=self.scale * factor, mask=mask)

    def split_rows(self, rows: slice, keys: int) -> Iterator[slice]:
        """Yield the queries of a range in parts whose logits on a number of keys fit in memory."""
        step = max(1, MAX_LOGITS // (self.query.shape[0] * self.query.shape[2] * max(1, keys)))
        for start in range(rows.start, rows.stop, step):
            yield slice(start, min(start + step, rows.stop))

    def compute_logits(self, rows: slice, keys: slice) -> Tensor:
        """Compute masked logits of some queries on some keys, float32 ``[B, H, n, m]``."""
        query, key = self.query[:, rows].float(), self.key[:, keys].float()
        logits = torch.einsum("bnhd,bthd->bhnt", query, key) * self.scale
        mask = self.additive_mask(rows)
        return logits if mask is None else logits + mask[..., keys]

    def attend(self, query: Tensor, rows: slice) -> Tensor:
        """Attend with other queries ``[B, n, H, D]`` to all keys that the given rows may see."""
        mask = self.additive_mask(rows)
        query, key, value = (t.transpose(1, 2) for t in (query, self.key, self.value))
        mask = mask.to(query.dtype) if mask is not None else None
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=self.scale
        )
        return attended.transpose(1, 2)

    def additive_mask(self, rows: slice) -> Tensor | None:
        """Return the additive mask of some rows, ``[B, H or 1, rows or 1, S]``, or None if there is no mask."""
        mask = self.mask
        if mask is None:
            return None
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
        mask = mask if mask.shape[2] == 1 else mask[:, :, rows]
        if mask.dtype == torch.bool:
            return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
        return mask.float()
