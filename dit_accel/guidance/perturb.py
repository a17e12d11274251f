"""Perturbed attention, computed without an attention map. All tensors are ``[B, S, H, D]``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from dit_accel.guidance.config import Perturbation, TextMode

ROWS = 4096  # queries whose logits over the text exist at a time


@dataclass(frozen=True)
class JointTokens:
    """Queries, keys and values after norm and RoPE, and which of the tokens are text.

    Attributes:
        query, key, value: ``[B, S, H, D]``.
        scale: softmax scale.
        mask: additive or boolean (True: attend), broadcastable to ``[B, H, S, S]``, or None.
        text: number of text tokens.
        text_first: whether they come first.
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
        size = self.query.shape[1]
        return slice(0, self.text) if self.text_first else slice(size - self.text, size)

    @property
    def visual_range(self) -> slice:
        size = self.query.shape[1]
        return slice(self.text, size) if self.text_first else slice(0, size - self.text)

    def of_heads(self, heads: Tensor) -> JointTokens:
        """The same of some heads."""
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
    """``(1 - u) A V + u P V`` in some heads, ``A V`` in the others (HeadHunter, arXiv 2506.10978, eq. 7).

    Args:
        attention: ``A V``, ``[B, S, H, D]``; where `needs_attention` says so, only its text rows, or None.
        tokens: what the attention is made of.
        heads: indices of the perturbed heads, int64; None: all.
        softness: u in [0, 1].
        perturbation, text_mode: what P is; see `PerturbedGuidance`.
    """
    chosen = tokens if heads is None else tokens.of_heads(heads)
    rows = slice(None) if text_mode == "joint" else tokens.visual_range
    weak = _PERTURBED[perturbation](chosen, text_mode)
    if attention is None:
        return weak.clone(memory_format=torch.contiguous_format)
    if attention.shape[1] != tokens.query.shape[1]:  # the text's rows alone
        return torch.cat([attention, weak] if tokens.text_first else [weak, attention], 1)
    out = attention.clone()
    if heads is None:
        out[:, rows] = torch.lerp(out[:, rows], weak, softness)
    else:
        kept = out[:, rows].index_select(2, heads)
        out[:, rows] = out[:, rows].index_copy(2, heads, torch.lerp(kept, weak, softness))
    return out


def needs_attention(
    tokens: JointTokens, heads: Tensor | None, softness: float, text_mode: TextMode
) -> Literal["all", "text", "none"]:
    """Which rows of the unperturbed attention are left."""
    if softness < 1.0 or heads is not None:
        return "all"
    return "text" if text_mode == "visual" and tokens.text > 0 else "none"


def _identity(tokens: JointTokens, text_mode: TextMode) -> Tensor:
    """Each visual token attends to itself, and in mode ``visual`` to the text as before: its logit on
    itself, against the log-sum-exp over the text.
    """
    if text_mode == "joint" or not tokens.text:
        return tokens.value
    visual = tokens.visual_range
    return _beside_text(tokens, tokens.key[:, visual], tokens.value[:, visual], 1)


def _uniform(tokens: JointTokens, text_mode: TextMode) -> Tensor:
    """Each token attends to all alike; in mode ``visual`` the logits among visual tokens become their mean
    in each row, and those on the text stay.
    """
    if text_mode == "joint" or not tokens.text:
        return _expanded(_one_row(tokens, torch.zeros_like(tokens.query[:, :1])), tokens.query)
    visual = tokens.visual_range
    key, value = (t[:, visual].float().mean(1, keepdim=True) for t in (tokens.key, tokens.value))
    like = tokens.value[:, visual]
    count = like.shape[1]
    return _beside_text(tokens, key.expand_as(like), value.to(like.dtype).expand_as(like), count)


def _mean_query(tokens: JointTokens, text_mode: TextMode) -> Tensor:
    """Every token attends with the mean query (SEG with infinite blur); in mode ``visual`` every visual
    token with the mean of theirs.
    """
    rows = slice(None) if text_mode == "joint" else tokens.visual_range
    query = tokens.query[:, rows]
    return _expanded(_one_row(tokens, query.mean(1, keepdim=True)), query)


_PERTURBED = {"identity": _identity, "uniform": _uniform, "mean-query": _mean_query}


def _beside_text(tokens: JointTokens, key: Tensor, value: Tensor, count: int) -> Tensor:
    """Attention of each visual row over ``count`` times its own one of ``key`` and ``value`` ``[B, N, H, D]``,
    and all text keys.
    """
    visual, text = tokens.visual_range, tokens.text_range
    parts = []
    for start in range(0, key.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        query = tokens.query[:, visual][:, rows].float()
        logit = (query * key[:, rows].float()).sum(-1) * tokens.scale + math.log(count)  # [B, N, H]
        logits = torch.einsum("bnhd,bthd->bhnt", query, tokens.key[:, text].float()) * tokens.scale
        first = visual.start + start
        mask = _mask_of(tokens, slice(first, first + query.shape[1]))
        if mask is not None:
            logits = logits + mask[..., text]
        both = torch.cat([logit.transpose(1, 2)[..., None], logits], -1).softmax(-1)
        own = both[..., :1].transpose(1, 2).to(value.dtype) * value[:, rows]
        over_text = torch.einsum(
            "bhnt,bthd->bnhd", both[..., 1:].to(value.dtype), tokens.value[:, text]
        )
        parts.append(own + over_text)
    return torch.cat(parts, 1)


def _one_row(tokens: JointTokens, query: Tensor) -> Tensor:
    """Attention of one query per head, ``[B, 1, H, D]``, over all keys that the first row may see."""
    mask = _mask_of(tokens, slice(0, 1))
    query, key, value = (t.transpose(1, 2) for t in (query, tokens.key, tokens.value))
    mask = mask.to(query.dtype) if mask is not None else None
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=tokens.scale
    )
    return out.transpose(1, 2)


def _expanded(row: Tensor, like: Tensor) -> Tensor:
    return row.expand(-1, like.shape[1], -1, -1)


def _mask_of(tokens: JointTokens, rows: slice) -> Tensor | None:
    """The additive mask of some rows, ``[B, H or 1, rows or 1, S]``, or None."""
    mask = tokens.mask
    if mask is None:
        return None
    mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    mask = mask if mask.shape[2] == 1 else mask[:, :, rows]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
    return mask.float()
