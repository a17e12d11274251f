"""Cluster tokens by batched Lloyd's k-means, one independent problem per (batch, head).

This is section 4.1 of Sparse VideoGen2 (arXiv 2505.18875). Iteration counts are fixed and sums are
float32. ``||x||^2`` is left out because it does not change the argmin. Nothing waits for the device, and
an empty cluster keeps its centroid. The first centroids are tokens at even strides, or tokens that a hash
of the cluster's number picks. Both are the same in every run, so equal input gives equal clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import (
    ContractError,
    check_no_gradient,
    check_tokens,
    label_tokens,
)
from dit_accel_kernels.cpu import compiled
from dit_accel_kernels.cpu.compiled import library_for
from dit_accel_kernels.grouping import group_by_label

if TYPE_CHECKING:
    from torch import Tensor

# Scores that assignment computes at a time: 4 MiB of float32.
CHUNK_SCORES = 1 << 20


def strided_centroids(tokens: Tensor, count: int) -> Tensor:
    """Return ``count`` tokens at even strides as first centroids.

    Args:
        tokens: ``[B, H, S, D]``.
        count: number of centroids, between 1 and S.

    Returns:
        float32 ``[B, H, count, D]``.

    Raises:
        ContractError: if ``count`` or the tensor does not fit.
    """
    num_tokens = _check_count(tokens, count)
    index = torch.arange(count, device=tokens.device) * num_tokens + num_tokens // 2
    return tokens[:, :, index // count].float()


def random_centroids(tokens: Tensor, count: int) -> Tensor:
    """Return ``count`` tokens of each head as first centroids, drawn with replacement.

    The draw is a hash of batch entry, head and cluster. It needs no generator, and is the same on every device.

    Args:
        tokens: ``[B, H, S, D]``.
        count: number of centroids, between 1 and S.

    Returns:
        float32 ``[B, H, count, D]``. A token can be drawn twice; its second cluster stays empty.

    Raises:
        ContractError: if ``count`` or the tensor does not fit.
    """
    num_tokens = _check_count(tokens, count)
    batch, heads, _, head_dim = tokens.shape
    number = torch.arange(batch * heads * count, device=tokens.device) + 1
    index = (_hash(number) * num_tokens >> 32).view(batch, heads, count, 1)
    return tokens.gather(2, index.expand(-1, -1, -1, head_dim)).float()


def _hash(number: Tensor) -> Tensor:
    """Mix 32-bit numbers, held in int64, by multiplications and shifts (the finalizer of MurmurHash3)."""
    number = number ^ (number >> 16)
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        # The products have 48 bits, because int64 has no room for 64.
        low, high = number & 0xFFFF, number >> 16
        number = (low * factor + ((high * factor & 0xFFFF) << 16)) & 0xFFFFFFFF
        number = number ^ (number >> shift)
    return number


def _check_count(tokens: Tensor, count: int) -> int:
    """Return the number of tokens. Raise ContractError unless ``count`` lies between 1 and it."""
    check_tokens("tokens", tokens)
    num_tokens = tokens.shape[2]
    if not 1 <= count <= num_tokens:
        expected = f"between 1 and the number of tokens {num_tokens}"
        raise ContractError("count", expected, count)
    return num_tokens


def kmeans_assign(tokens: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the nearest centroid in Euclidean distance.

    Args:
        tokens: ``[B, H, S, D]``.
        centroids: float32 ``[B, H, K, D]``.

    Returns:
        int64 ``[B, H, S]``; the first of equally near centroids.

    Raises:
        ContractError: if a shape or dtype does not fit.
    """
    _check_centroids(tokens, centroids)
    if tokens.is_cuda:
        from dit_accel_kernels.gpu.kmeans import kmeans_assign as kmeans_assign_gpu

        with torch.cuda.device_of(tokens):
            return kmeans_assign_gpu(tokens, centroids)
    library = library_for(tokens)
    if not isinstance(library, str):
        return compiled.nearest_centroid(library, tokens, centroids)
    centroids = centroids.float().flatten(0, 1)
    # The largest x . c - |c|^2 / 2 belongs to the nearest centroid.
    minus_half_norm = -0.5 * centroids.square().sum(-1)[:, None]  # [B H, 1, K]
    columns = centroids.transpose(1, 2)  # [B H, D, K]
    chunk = max(1, CHUNK_SCORES // (centroids.shape[0] * centroids.shape[1]))
    labels = [
        torch.baddbmm(minus_half_norm, x.float().flatten(0, 1), columns).argmax(-1)
        for x in tokens.split(chunk, dim=2)
    ]
    return torch.cat(labels, dim=1).view(tokens.shape[:3])


def _check_centroids(tokens: Tensor, centroids: Tensor) -> None:
    """Raise ContractError unless tokens are ``[B, H, S, D]`` and centroids ``[B, H, K, D]``."""
    check_tokens("tokens", tokens)
    batch, heads, _, head_dim = tokens.shape
    shape = tuple(centroids.shape)
    if len(shape) != 4 or (*shape[:2], shape[3]) != (batch, heads, head_dim):
        expected = f"of shape [{batch}, {heads}, K, {head_dim}]"
        raise ContractError("centroids", expected, list(shape))
    check_no_gradient("centroids", centroids)


def kmeans_update(tokens: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Return the mean of each cluster's tokens.

    Args:
        tokens: ``[B, H, S, D]``.
        labels: int64 ``[B, H, S]`` in ``0 .. K - 1``.
        centroids: float32 ``[B, H, K, D]``; an empty cluster keeps its centroid.

    Returns:
        float32 ``[B, H, K, D]``.

    Raises:
        ContractError: if a tensor requires a gradient.
    """
    check_no_gradient("tokens", tokens)
    check_no_gradient("centroids", centroids)
    groups = group_by_label(labels, centroids.shape[2])
    return _means(tokens, *groups, centroids, squared=False)


def _means(
    tokens: Tensor, order: Tensor, offsets: Tensor, empty: Tensor, *, squared: bool
) -> Tensor:
    """Return the means of groups of tokens, or of their squares. An empty group gets its row of ``empty``."""
    if tokens.is_cuda:
        from dit_accel_kernels.gpu.kmeans import kmeans_update as kmeans_update_gpu

        with torch.cuda.device_of(tokens):
            return kmeans_update_gpu(tokens, order, offsets, empty, squared=squared)
    library = library_for(tokens)
    if not isinstance(library, str):
        return compiled.group_means(library, tokens, order, offsets, empty, squared=squared)
    batch, heads, count, head_dim = empty.shape
    head_index = torch.arange(batch * heads, device=order.device).view(batch, heads, 1)
    rows = label_tokens(order, offsets) + count * head_index
    tokens = tokens.float().square() if squared else tokens.float()
    sums = tokens.new_zeros(batch * heads * count, head_dim)
    sums = sums.index_add_(0, rows.flatten(), tokens.flatten(0, 2)).view_as(empty)
    sizes = offsets.diff(dim=-1)[..., None]
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), empty)


def group_means(tokens: Tensor, order: Tensor, offsets: Tensor, *, squared: bool = False) -> Tensor:
    """Return the mean of each group's tokens, or of their squares.

    Args:
        tokens: ``[B, H, S, D]``.
        order, offsets: groups as `group_by_label` returns them.
        squared: average the squares of the tokens instead.

    Returns:
        float32 ``[B, H, G, D]``; 0 for an empty group.

    Raises:
        ContractError: if the tokens require a gradient.
    """
    check_no_gradient("tokens", tokens)
    batch, heads, _, head_dim = tokens.shape
    zeros = tokens.new_zeros(batch, heads, offsets.shape[-1] - 1, head_dim, dtype=torch.float32)
    return _means(tokens, order, offsets, zeros, squared=squared)


def group_variance(tokens: Tensor, order: Tensor, offsets: Tensor, means: Tensor) -> Tensor:
    """Return the variance of each group's tokens per channel.

    Args:
        tokens: ``[B, H, S, D]``.
        order, offsets: groups as `group_by_label` returns them.
        means: the result of `group_means` for the same groups, float32 ``[B, H, G, D]``.

    Returns:
        float32 ``[B, H, G, D]``; 0 for an empty group.

    Raises:
        ContractError: if a tensor requires a gradient.
    """
    check_no_gradient("means", means)
    squares = group_means(tokens, order, offsets, squared=True)
    return (squares - means.square()).clamp(min=0)


def kmeans(tokens: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Run some rounds of assignment and update.

    Args:
        tokens: ``[B, H, S, D]``.
        centroids: first centroids, float32 ``[B, H, K, D]``.
        iterations: number of rounds, at least 1.

    Returns:
        labels int64 ``[B, H, S]``, and centroids float32 ``[B, H, K, D]``, which are the means of
        exactly those labels.

    Raises:
        ContractError: if ``iterations`` is below 1, or a shape or dtype does not fit.

    Example:
        >>> labels, centroids = kmeans(key, strided_centroids(key, 100), iterations=4)
    """
    if iterations < 1:
        raise ContractError("iterations", "at least 1", iterations)
    if not tokens.is_cuda and isinstance(library_for(tokens), str):
        # Convert once, not in every round.
        tokens = tokens.float().contiguous()
    for _ in range(iterations):
        labels = kmeans_assign(tokens, centroids)
        centroids = kmeans_update(tokens, labels, centroids)
    return labels, centroids


def kmeans_groups(
    tokens: Tensor, centroids: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `kmeans`, and list the tokens cluster by cluster.

    The last round averages the clusters in this order, so nothing is sorted twice.

    Args:
        tokens, centroids, iterations: as in `kmeans`.

    Returns:
        order int64 ``[B, H, S]`` and offsets int64 ``[B, H, K + 1]`` as `group_by_label` returns them, and
        centroids float32 ``[B, H, K, D]``.

    Raises:
        ContractError: as `kmeans` does.

    Example:
        Groups of keys for a `BlockMap`::

            key_order, key_offsets, means = kmeans_groups(key, strided_centroids(key, 100), iterations=4)
    """
    if iterations < 1:
        raise ContractError("iterations", "at least 1", iterations)
    if iterations > 1:
        _, centroids = kmeans(tokens, centroids, iterations - 1)
    labels = kmeans_assign(tokens, centroids)
    order, offsets = group_by_label(labels, centroids.shape[2])
    return order, offsets, _means(tokens, order, offsets, centroids, squared=False)
