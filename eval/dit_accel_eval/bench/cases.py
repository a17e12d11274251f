"""Shapes of real attention layers, inputs with structure, and maps with clusters of uneven size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_accel_kernels import BlockMap, group_by_label, select_budget

Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """One self-attention call: heads, tokens, head_dim."""

    heads: int
    tokens: int
    head_dim: int

    def pairs(self) -> int:
        """Number of (query, key) pairs over all heads."""
        return self.heads * self.tokens**2


SHAPES: dict[str, Shape] = {
    "wan-480p": Shape(12, 32_760, 128),  # Wan 2.1 1.3B, 81 frames
    "wan-720p": Shape(40, 75_600, 128),  # Wan 2.1 14B, 81 frames
    "hunyuanvideo-720p": Shape(24, 118_800, 128),  # 129 frames, without its text tokens
    "cogvideox": Shape(48, 17_776, 64),  # CogVideoX-5B, 49 frames
    "flux-1024": Shape(24, 4_608, 128),
    "cpu-4096": Shape(4, 4_096, 64),
    "cpu-8192": Shape(4, 8_192, 64),
    "cpu-16384": Shape(4, 16_384, 64),
}


def clustered(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Query, key and value ``[1, S, H, D]``: queries and keys scattered around shared centres, one per
    32 tokens, in random order.
    """
    generator = torch.Generator(device).manual_seed(seed)
    size = (shape.heads, shape.tokens, shape.head_dim)
    centres = torch.randn(
        shape.heads, -(-shape.tokens // 32), shape.head_dim, generator=generator, device=device
    )
    order = torch.randperm(shape.tokens, generator=generator, device=device) // 32
    query, key = (
        0.7 * centres[:, order] + 0.5 * torch.randn(size, generator=generator, device=device)
        for _ in range(2)
    )
    value = torch.randn(size, generator=generator, device=device)
    return laid_out(query, dtype), laid_out(key, dtype), laid_out(value, dtype)


def laid_out(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[H, S, D]`` as a pipeline has it, ``[1, S, H, D]``."""
    return x.transpose(0, 1).contiguous()[None].to(dtype)


def lognormal_labels(shape: Shape, count: int, sigma: float, device: str, seed: int) -> Tensor:
    """Labels ``[1, H, S]`` of clusters whose sizes are lognormal; tokens of a cluster lie scattered."""
    generator = torch.Generator().manual_seed(seed)
    share = (sigma * torch.randn(shape.heads, count, generator=generator)).exp()
    draws = torch.multinomial(share, shape.tokens, replacement=True, generator=generator)
    return draws[None].to(device)


def random_map(
    shape: Shape, groups: tuple[int, int], density: float, sigma: float, device: str
) -> BlockMap:
    """A map of the given density over lognormal clusters, its selection drawn at random."""
    labels = [lognormal_labels(shape, n, sigma, device, i) for i, n in enumerate(groups)]
    parts = [p for x, n in zip(labels, groups, strict=True) for p in group_by_label(x, n)]
    generator = torch.Generator().manual_seed(2)
    score = torch.rand(1, shape.heads, *groups, generator=generator).to(device)
    budget = torch.full((1, shape.heads, groups[0]), density * shape.tokens, device=device)
    return BlockMap(select_budget(score, parts[3].diff(dim=-1), budget), *parts)
