"""Paths from an attention map to the identity (HeadHunter, arXiv 2506.10978), without computing the map.

With weight ``a`` of a token on itself, each path keeps the ratios among the other weights. So its map gives
``others (A V - a v) + own v``, divided by ``others (1 - a) + own``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel.guidance.config import Interpolation
    from dit_accel.guidance.joint_tokens import JointTokens

SMALLEST = 1e-6
"""Weight that log-linear interpolation gives to the zeros of the identity, as the released code does."""

SMALL_ANGLE = 1e-4
"""Angle below which slerp is linear, as in the released code."""


def interpolate_to_identity(
    attention: Tensor, tokens: JointTokens, softness: float, interpolation: Interpolation
) -> Tensor:
    """Compute attention whose map lies between ``A`` and the identity, ``[B, S, H, D]``.

    Args:
        attention: Attention ``A V`` of the tokens.
        tokens: Input of the attention.
        softness: Place on the path: 0 is ``A``, 1 is the identity.
        interpolation: The path, other than ``"linear"``. With ``"fisher-rao"`` the square roots of the weights are
            mixed and normalized again. With ``"slerp"`` they follow the arc between them. With ``"log-linear"`` the
            logarithms are mixed, where the identity has `SMALLEST` instead of 0.
    """
    rest = 1.0 - softness
    if interpolation == "log-linear":
        tokens = tokens.temper(rest)
        attention = tokens.attend(tokens.query, slice(0, tokens.query.shape[1]))
    weight = compute_own_weight(tokens)
    if interpolation == "fisher-rao":
        others = torch.full_like(weight, rest**2)
        own = (softness + rest * weight.sqrt()) ** 2
    elif interpolation == "slerp":
        angle = torch.atan2((1.0 - weight).clamp(min=0.0).sqrt(), weight.sqrt())
        small, sine = angle < SMALL_ANGLE, angle.sin()
        to_identity = torch.where(small, softness, (softness * angle).sin() / sine)
        to_map = torch.where(small, rest, (rest * angle).sin() / sine)
        others, own = to_map**2, (to_identity + to_map * weight.sqrt()) ** 2
    else:
        largest = max(1.0 - SMALLEST * (tokens.key.shape[1] - 2), SMALLEST)
        others, own = torch.ones_like(weight), weight * (largest / SMALLEST) ** softness
    value = tokens.value.float()
    mixed = others * (attention.float() - weight * value) + own * value
    return (mixed / (others * (1.0 - weight) + own)).to(tokens.value.dtype)


def compute_own_weight(tokens: JointTokens) -> Tensor:
    """Compute the weight of each token on itself, float32 ``[B, S, H, 1]``."""
    size = tokens.query.shape[1]
    parts = []
    for rows in tokens.split_rows(slice(0, size), size):
        logits = tokens.compute_logits(rows, slice(0, size))
        own = logits.diagonal(rows.start, -2, -1)
        parts.append((own - logits.logsumexp(-1)).exp())
    return torch.cat(parts, -1).transpose(1, 2)[..., None]
