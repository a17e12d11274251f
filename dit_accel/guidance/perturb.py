"""Perturbed attention, computed without an attention map. All tensors are ``[B, S, H, D]``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from dit_accel.guidance.blur import blur_queries
from dit_accel.guidance.config import Perturbation, PerturbedGuidance
from dit_accel.guidance.interpolate import compute_own_weight, interpolate_to_identity
from dit_accel.guidance.joint_tokens import JointTokens

if TYPE_CHECKING:
    from torch import Tensor


def soft_perturbation(
    attention: Tensor | None,
    tokens: JointTokens,
    heads: Tensor | None,
    settings: PerturbedGuidance,
) -> Tensor:
    """Compute ``(1 - u) A V + u P V`` in some heads and ``A V`` in the others (HeadHunter, arXiv 2506.10978, eq. 7).

    Args:
        attention: Unperturbed attention ``A V``, ``[B, S, H, D]``: the rows that `needed_attention` names, or None
            if it names none.
        tokens: Input of the attention.
        heads: Indices of the perturbed heads, int64 ``[h]``, or None for all heads.
        settings: Weight u of the perturbation, the attention map P, the path to it and the perturbed tokens.

    Returns:
        A new tensor ``[B, S, H, D]``.
    """
    selected = tokens if heads is None else tokens.select_heads(heads)
    softness = settings.softness
    if settings.interpolation != "linear" and 0.0 < softness < 1.0:
        assert attention is not None
        before = attention if heads is None else attention.index_select(2, heads)
        mixed = interpolate_to_identity(before, selected, softness, settings.interpolation)
        return mixed if heads is None else attention.index_copy(2, heads, mixed)
    perturbed = _PERTURBATIONS[settings.perturbation](selected, settings)
    if attention is None:
        return perturbed.clone(memory_format=torch.contiguous_format)
    # Only the text rows of the attention were needed.
    if attention.shape[1] != tokens.query.shape[1]:
        parts = [attention, perturbed] if tokens.text_first else [perturbed, attention]
        return torch.cat(parts, 1)
    rows = slice(None) if settings.text_mode == "joint" else tokens.visual_range
    output = attention.clone()
    if heads is None:
        output[:, rows] = torch.lerp(output[:, rows], perturbed, softness)
    else:
        unperturbed = output[:, rows].index_select(2, heads)
        mixed = torch.lerp(unperturbed, perturbed, softness)
        output[:, rows] = output[:, rows].index_copy(2, heads, mixed)
    return output


def needed_attention(
    tokens: JointTokens, heads: Tensor | None, settings: PerturbedGuidance
) -> Literal["all", "text", "none"]:
    """Return the rows of the unperturbed attention that `soft_perturbation` needs."""
    if settings.softness < 1.0 or heads is not None:
        return "all"
    return "text" if settings.text_mode == "visual" and tokens.text > 0 else "none"


def _has_no_text(tokens: JointTokens, settings: PerturbedGuidance) -> bool:
    return settings.text_mode == "joint" or not tokens.text


def _attend_to_self(tokens: JointTokens, settings: PerturbedGuidance) -> Tensor:
    """Attend from each token to itself only.

    In mode ``visual`` each visual token attends to the text as before: its logit on itself competes with the
    logits on the text.
    """
    if _has_no_text(tokens, settings):
        return tokens.value
    own = _own_logits(tokens, tokens.key[:, tokens.visual_range])
    return _attend_beside_text(tokens, own, tokens.value[:, tokens.visual_range])


def _attend_uniformly(tokens: JointTokens, settings: PerturbedGuidance) -> Tensor:
    """Attend from each token to all tokens equally.

    In mode ``visual`` the logits among visual tokens become their mean in each row. The logits on the text stay.
    """
    if _has_no_text(tokens, settings):
        row = tokens.attend(torch.zeros_like(tokens.query[:, :1]), slice(0, 1))
        return _expand_row(row, tokens.query)
    visual = tokens.visual_range
    key, value = (t[:, visual].float().mean(1, keepdim=True) for t in (tokens.key, tokens.value))
    like = tokens.value[:, visual]
    own = _own_logits(tokens, key.expand_as(like)) + math.log(like.shape[1])
    return _attend_beside_text(tokens, own, value.to(like.dtype).expand_as(like))


def _attend_with_mean_query(tokens: JointTokens, settings: PerturbedGuidance) -> Tensor:
    """Attend from each token with the mean query (SEG with infinite blur).

    In mode ``visual`` the mean is that of the visual tokens' queries.
    """
    rows = slice(None) if settings.text_mode == "joint" else tokens.visual_range
    query = tokens.query[:, rows]
    row = tokens.attend(query.mean(1, keepdim=True), slice(0, 1))
    return _expand_row(row, query)


def _attend_with_blurred_query(tokens: JointTokens, settings: PerturbedGuidance) -> Tensor:
    """Attend from each visual token with queries that are blurred over the token grid (SEG)."""
    assert settings.sigma is not None
    rows = tokens.visual_range
    return tokens.attend(blur_queries(tokens.query[:, rows], tokens.grid, settings.sigma), rows)


def _attend_to_self_renormalized(tokens: JointTokens, settings: PerturbedGuidance) -> Tensor:
    """Attend from each token to itself with the weight that it gave to all visual tokens, and to the text as before."""
    if _has_no_text(tokens, settings):
        return tokens.value
    return _attend_beside_text(tokens, _visual_mass(tokens), tokens.value[:, tokens.visual_range])


def _attend_to_self_zeroed(tokens: JointTokens, settings: PerturbedGuidance) -> Tensor:
    """Attend from each token to itself and to the text as before, without the weight on the other visual tokens."""
    if _has_no_text(tokens, settings):
        return (compute_own_weight(tokens) * tokens.value).to(tokens.value.dtype)
    own = _own_logits(tokens, tokens.key[:, tokens.visual_range])
    value = tokens.value[:, tokens.visual_range]
    return _attend_beside_text(tokens, own, value, _visual_mass(tokens))


_PERTURBATIONS: dict[Perturbation, Callable[[JointTokens, PerturbedGuidance], Tensor]] = {
    "identity": _attend_to_self,
    "uniform": _attend_uniformly,
    "mean-query": _attend_with_mean_query,
    "blurred-query": _attend_with_blurred_query,
    "renormalized-identity": _attend_to_self_renormalized,
    "zeroed-identity": _attend_to_self_zeroed,
}


def _own_logits(tokens: JointTokens, key: Tensor) -> Tensor:
    """Return the logit of each visual token on one key ``[B, N, H, D]`` of its own, float32 ``[B, H, N]``."""
    query = tokens.query[:, tokens.visual_range].float()
    return (query * key.float()).sum(-1).transpose(1, 2) * tokens.scale


def _visual_mass(tokens: JointTokens) -> Tensor:
    """Return the log-sum-exp of each visual token's logits on all visual tokens, float32 ``[B, H, N]``."""
    visual = tokens.visual_range
    parts = tokens.split_rows(visual, visual.stop - visual.start)
    return torch.cat([tokens.compute_logits(rows, visual).logsumexp(-1) for rows in parts], -1)


def _attend_beside_text(
    tokens: JointTokens, own: Tensor, value: Tensor, visual: Tensor | None = None
) -> Tensor:
    """Attend from each visual token to one value of its own and to all text tokens.

    Args:
        tokens: Input of the attention.
        own: Logit of each visual token on its own value, ``[B, H, N]``.
        value: The visual tokens' own values ``[B, N, H, D]``.
        visual: Log-sum-exp of the visual tokens in the softmax's sum, ``[B, H, N]``. None is ``own``.
    """
    parts, first = [], tokens.visual_range.start
    for rows in tokens.split_rows(tokens.visual_range, tokens.text):
        here = slice(rows.start - first, rows.stop - first)
        text_logits = tokens.compute_logits(rows, tokens.text_range)  # [B, H, N, T]
        in_sum = own if visual is None else visual
        lse = torch.logaddexp(in_sum[..., here], text_logits.logsumexp(-1))[..., None]
        own_weight = (own[..., here, None] - lse).exp().to(value.dtype).transpose(1, 2)
        text_weights = (text_logits - lse).exp().to(value.dtype)
        from_text = torch.einsum(
            "bhnt,bthd->bnhd", text_weights, tokens.value[:, tokens.text_range]
        )
        parts.append(own_weight * value[:, here] + from_text)
    return torch.cat(parts, 1)


def _expand_row(row: Tensor, like: Tensor) -> Tensor:
    return row.expand(-1, like.shape[1], -1, -1)
