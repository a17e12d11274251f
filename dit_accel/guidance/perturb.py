"""Perturbed attention, computed without an attention map. All tensors are ``[B, S, H, D]``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from dit_accel.guidance.config import Perturbation, TextMode

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 4096
"""Number of queries whose logits over the text are in memory at a time."""


@dataclass(frozen=True)
class JointTokens:
    """Queries, keys and values after norm and RoPE, and the place of the text tokens among them.

    Attributes:
        query, key, value: ``[B, S, H, D]``.
        scale: Softmax scale.
        mask: Additive or boolean mask (True: attend), broadcastable to ``[B, H, S, S]``, or None.
        text: Number of text tokens.
        text_first: True if the text tokens come before the visual tokens.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    mask: Tensor | None = None
    text: int = 0
    text_first: bool = False

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
        return JointTokens(query, key, value, self.scale, mask, self.text, self.text_first)


def soft_perturbation(
    attention: Tensor | None,
    tokens: JointTokens,
    heads: Tensor | None,
    softness: float,
    perturbation: Perturbation,
    text_mode: TextMode,
) -> Tensor:
    """Compute ``(1 - u) A V + u P V`` in some heads and ``A V`` in the others (HeadHunter, arXiv 2506.10978, eq. 7).

    Args:
        attention: Unperturbed attention ``A V``, ``[B, S, H, D]``: the rows that `needed_attention` names, or None
            if it names none.
        tokens: Input of the attention.
        heads: Indices of the perturbed heads, int64 ``[h]``, or None for all heads.
        softness: Weight u of the perturbation, in [0, 1].
        perturbation: The attention map P; see `PerturbedGuidance`.
        text_mode: Tokens that are perturbed; see `PerturbedGuidance`.

    Returns:
        A new tensor ``[B, S, H, D]``.
    """
    selected = tokens if heads is None else tokens.select_heads(heads)
    perturbed = _PERTURBATIONS[perturbation](selected, text_mode)
    if attention is None:
        return perturbed.clone(memory_format=torch.contiguous_format)
    # Only the text rows of the attention were needed.
    if attention.shape[1] != tokens.query.shape[1]:
        parts = [attention, perturbed] if tokens.text_first else [perturbed, attention]
        return torch.cat(parts, 1)
    rows = slice(None) if text_mode == "joint" else tokens.visual_range
    output = attention.clone()
    if heads is None:
        output[:, rows] = torch.lerp(output[:, rows], perturbed, softness)
    else:
        unperturbed = output[:, rows].index_select(2, heads)
        mixed = torch.lerp(unperturbed, perturbed, softness)
        output[:, rows] = output[:, rows].index_copy(2, heads, mixed)
    return output


def needed_attention(
    tokens: JointTokens, heads: Tensor | None, softness: float, text_mode: TextMode
) -> Literal["all", "text", "none"]:
    """Return the rows of the unperturbed attention that `soft_perturbation` needs."""
    if softness < 1.0 or heads is not None:
        return "all"
    return "text" if text_mode == "visual" and tokens.text > 0 else "none"


def _attend_to_self(tokens: JointTokens, text_mode: TextMode) -> Tensor:
    """Attend from each token to itself only.

    In mode ``visual`` each visual token attends to the text as before: its logit on itself competes with the
    logits on the text.
    """
    if text_mode == "joint" or not tokens.text:
        return tokens.value
    visual = tokens.visual_range
    return _attend_beside_text(tokens, tokens.key[:, visual], tokens.value[:, visual], 1)


def _attend_uniformly(tokens: JointTokens, text_mode: TextMode) -> Tensor:
    """Attend from each token to all tokens equally.

    In mode ``visual`` the logits among visual tokens become their mean in each row. The logits on the text stay.
    """
    if text_mode == "joint" or not tokens.text:
        row = _attend_with_one_query(tokens, torch.zeros_like(tokens.query[:, :1]))
        return _expand_row(row, tokens.query)
    visual = tokens.visual_range
    key, value = (t[:, visual].float().mean(1, keepdim=True) for t in (tokens.key, tokens.value))
    like = tokens.value[:, visual]
    count = like.shape[1]
    return _attend_beside_text(
        tokens, key.expand_as(like), value.to(like.dtype).expand_as(like), count
    )


def _attend_with_mean_query(tokens: JointTokens, text_mode: TextMode) -> Tensor:
    """Attend from each token with the mean query (SEG with infinite blur).

    In mode ``visual`` the mean is that of the visual tokens' queries.
    """
    rows = slice(None) if text_mode == "joint" else tokens.visual_range
    query = tokens.query[:, rows]
    return _expand_row(_attend_with_one_query(tokens, query.mean(1, keepdim=True)), query)


_PERTURBATIONS: dict[Perturbation, Callable[[JointTokens, TextMode], Tensor]] = {
    "identity": _attend_to_self,
    "uniform": _attend_uniformly,
    "mean-query": _attend_with_mean_query,
}


def _attend_beside_text(tokens: JointTokens, key: Tensor, value: Tensor, count: int) -> Tensor:
    """Attend from each visual token to one key of its own and to all text keys.

    Args:
        tokens: Input of the attention.
        key: The visual tokens' own keys ``[B, N, H, D]``.
        value: Their values ``[B, N, H, D]``.
        count: How many times each own key counts in the softmax.
    """
    visual, text = tokens.visual_range, tokens.text_range
    parts = []
    for start in range(0, key.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        query = tokens.query[:, visual][:, rows].float()
        # [B, N, H]
        own_logit = (query * key[:, rows].float()).sum(-1) * tokens.scale + math.log(count)
        # [B, H, N, T]
        text_logits = (
            torch.einsum("bnhd,bthd->bhnt", query, tokens.key[:, text].float()) * tokens.scale
        )
        first = visual.start + start
        mask = _additive_mask(tokens, slice(first, first + query.shape[1]))
        if mask is not None:
            text_logits = text_logits + mask[..., text]
        logits = torch.cat([own_logit.transpose(1, 2)[..., None], text_logits], -1)
        weights = logits.softmax(-1).to(value.dtype)
        from_own = weights[..., :1].transpose(1, 2) * value[:, rows]
        from_text = torch.einsum("bhnt,bthd->bnhd", weights[..., 1:], tokens.value[:, text])
        parts.append(from_own + from_text)
    return torch.cat(parts, 1)


def _attend_with_one_query(tokens: JointTokens, query: Tensor) -> Tensor:
    """Attend with one query per head ``[B, 1, H, D]`` to all keys that the first row may see."""
    mask = _additive_mask(tokens, slice(0, 1))
    query, key, value = (t.transpose(1, 2) for t in (query, tokens.key, tokens.value))
    mask = mask.to(query.dtype) if mask is not None else None
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=tokens.scale
    )
    return attended.transpose(1, 2)


def _expand_row(row: Tensor, like: Tensor) -> Tensor:
    return row.expand(-1, like.shape[1], -1, -1)


def _additive_mask(tokens: JointTokens, rows: slice) -> Tensor | None:
    """Return the additive mask of some rows, ``[B, H or 1, rows or 1, S]``, or None if there is no mask."""
    mask = tokens.mask
    if mask is None:
        return None
    mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    mask = mask if mask.shape[2] == 1 else mask[:, :, rows]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
    return mask.float()
