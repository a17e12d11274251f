"""Batched Lloyd's k-means, one independent problem per (batch, head): SVG2 (arXiv 2505.18875),
section 4.1.

Fixed iteration counts, float32 sums, no ``||x||^2`` (it does not change the argmin), no host sync;
an empty cluster keeps its centroid. Nothing is random: the first centroids are tokens at even
strides, so equal input gives equal clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import ContractError, check_tokens, group_of_token
from dit_accel_kernels.grouping import group_by_label

SCORE_ELEMENTS = 1 << 20  # scores held at a time: 4 MiB of float32


def strided_centroids(tokens: Tensor, count: int) -> Tensor:
    """``count`` tokens at even strides as first centroids, float32 ``[B, H, count, D]``."""
    check_tokens("tokens", tokens)
    size = tokens.shape[2]
    if not 1 <= count <= size:
        raise ContractError("count", f"between 1 and the number of tokens {size}", count)
    place = (torch.arange(count, device=tokens.device) * size + size // 2) // count
    return tokens[:, :, place].float()


def kmeans_assign(tokens: Tensor, centroids: Tensor) -> Tensor:
    """Label of the nearest centroid in Euclidean distance.

    Args:
        tokens: ``[B, H, S, D]``.
        centroids: float32 ``[B, H, K, D]``.

    Returns:
        int64 ``[B, H, S]``; of equally near centroids the first.
    """
    check_tokens("tokens", tokens)
    if (
        centroids.dim() != 4
        or centroids.shape[:2] != tokens.shape[:2]
        or centroids.shape[3] != tokens.shape[3]
    ):
        expected = f"[{tokens.shape[0]}, {tokens.shape[1]}, K, {tokens.shape[3]}]"
        raise ContractError("centroids", f"of shape {expected}", list(centroids.shape))
    if tokens.is_cuda:
        from dit_accel_kernels.gpu.kmeans import kmeans_assign as on_gpu

        with torch.cuda.device_of(tokens):
            return on_gpu(tokens, centroids)
    centroids = centroids.float().flatten(0, 1)
    minus_half_norm = -0.5 * centroids.square().sum(-1)[:, None]  # [B H, 1, K]
    columns = centroids.transpose(1, 2)  # [B H, D, K]
    rows = max(1, SCORE_ELEMENTS // (centroids.shape[0] * centroids.shape[1]))
    pieces = [
        torch.baddbmm(minus_half_norm, x.float().flatten(0, 1), columns).argmax(-1)
        for x in tokens.split(rows, dim=2)
    ]
    return torch.cat(pieces, dim=1).view(tokens.shape[:3])


def kmeans_update(tokens: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Mean of each cluster's tokens, float32 ``[B, H, K, D]``; an empty cluster keeps its row of
    ``centroids``.
    """
    batch, heads, count, width = centroids.shape
    if tokens.is_cuda:
        from dit_accel_kernels.gpu.kmeans import kmeans_update as on_gpu

        with torch.cuda.device_of(tokens):
            return on_gpu(tokens, *group_by_label(labels, count), centroids)
    rows = labels + count * torch.arange(batch * heads, device=labels.device).view(batch, heads, 1)
    sums = tokens.new_zeros(batch * heads * count, width, dtype=torch.float32)
    sums.index_add_(0, rows.flatten(), tokens.float().flatten(0, 2))
    ones = torch.ones_like(labels, dtype=torch.float32)
    sizes = ones.new_zeros(batch, heads, count).scatter_add_(2, labels, ones)[..., None]
    means = sums.view(batch, heads, count, width) / sizes.clamp(min=1)
    return torch.where(sizes > 0, means, centroids)


def group_means(tokens: Tensor, order: Tensor, offsets: Tensor, *, squared: bool = False) -> Tensor:
    """Mean of each group's tokens, float32 ``[B, H, G, D]``; 0 for an empty one.

    Args:
        tokens: ``[B, H, S, D]``.
        order, offsets: groups as `group_by_label` gives them.
        squared: of the tokens' squares instead.
    """
    batch, heads, _, width = tokens.shape
    nothing = tokens.new_zeros(batch, heads, offsets.shape[-1] - 1, width, dtype=torch.float32)
    if tokens.is_cuda:
        from dit_accel_kernels.gpu.kmeans import kmeans_update as on_gpu

        with torch.cuda.device_of(tokens):
            return on_gpu(tokens, order, offsets, nothing, squared)
    tokens = tokens.float().square() if squared else tokens
    return kmeans_update(tokens, group_of_token(order, offsets), nothing)


def group_variance(tokens: Tensor, order: Tensor, offsets: Tensor, means: Tensor) -> Tensor:
    """Variance of each group's tokens per channel, float32 ``[B, H, G, D]``, around their `group_means`."""
    squares = group_means(tokens, order, offsets, squared=True)
    return (squares - means.square()).clamp(min=0)


def kmeans(tokens: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Run ``iterations`` rounds of assign and update from given centroids.

    Returns:
        labels int64 ``[B, H, S]`` and centroids float32 ``[B, H, K, D]``, the means of exactly
        those labels.

    Raises:
        ContractError: if iterations is below 1, or shapes do not fit.
    """
    if iterations < 1:
        raise ContractError("iterations", "at least 1", iterations)
    if not tokens.is_cuda:
        tokens = tokens.float().contiguous()  # once, not in every pass
    for _ in range(iterations):
        labels = kmeans_assign(tokens, centroids)
        centroids = kmeans_update(tokens, labels, centroids)
    return labels, centroids
