"""Shapes of real attention layers, random inputs with clusters, and random block maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from dit_accel_kernels import BlockMap, group_by_label, select_budget

if TYPE_CHECKING:
    from torch import Tensor

Inputs: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
"""Query, key and value."""

TOKENS_PER_CENTRE = 32


@dataclass(frozen=True)
class Shape:
    """The size of one self-attention call."""

    heads: int
    tokens: int
    head_dim: int

    def pairs(self) -> int:
        """Return the number of (query, key) pairs over all heads."""
        return self.heads * self.tokens**2


SHAPES: dict[str, Shape] = {
    # Wan 2.1 1.3B with 81 frames.
    "wan-480p": Shape(12, 32_760, 128),
    # Wan 2.1 14B with 81 frames.
    "wan-720p": Shape(40, 75_600, 128),
    # 129 frames, without the text tokens.
    "hunyuanvideo-720p": Shape(24, 118_800, 128),
    # CogVideoX-5B with 49 frames.
    "cogvideox": Shape(48, 17_776, 64),
    "flux-1024": Shape(24, 4_608, 128),
    "cpu-3328": Shape(4, 3_328, 64),
    "cpu-4096": Shape(4, 4_096, 64),
    "cpu-8192": Shape(4, 8_192, 64),
    "cpu-16384": Shape(4, 16_384, 64),
}


def make_inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Return random query, key and value ``[1, S, H, D]`` whose queries and keys form clusters.

    Queries and keys scatter around shared centres, one for every 32 tokens, in random order.
    """
    generator = torch.Generator(device).manual_seed(seed)
    size = (shape.heads, shape.tokens, shape.head_dim)
    count = -(-shape.tokens // TOKENS_PER_CENTRE)
    centres = torch.randn(shape.heads, count, shape.head_dim, generator=generator, device=device)
    order = torch.randperm(shape.tokens, generator=generator, device=device) // TOKENS_PER_CENTRE
    query, key = (
        0.7 * centres[:, order] + 0.5 * torch.randn(size, generator=generator, device=device)
        for _ in range(2)
    )
    value = torch.randn(size, generator=generator, device=device)
    return tokens_first(query, dtype), tokens_first(key, dtype), tokens_first(value, dtype)


def tokens_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``[H, S, D]`` in the layout of a pipeline, ``[1, S, H, D]``."""
    return x.transpose(0, 1).contiguous()[None].to(dtype)


def draw_labels(shape: Shape, count: int, sigma: float, device: str, seed: int) -> Tensor:
    """Return cluster labels ``[1, H, S]`` of scattered tokens; cluster sizes are log-normal with ``sigma``."""
    generator = torch.Generator().manual_seed(seed)
    weights = (sigma * torch.randn(shape.heads, count, generator=generator)).exp()
    labels = torch.multinomial(weights, shape.tokens, replacement=True, generator=generator)
    return labels[None].to(device)


def draw_block_map(
    shape: Shape, groups: tuple[int, int], density: float, sigma: float, device: str
) -> BlockMap:
    """Return a random block map of a density, with log-normal sizes of its groups.

    Args:
        groups: number of query groups and of key groups.
        sigma: spread of the group sizes.
    """
    labels = [draw_labels(shape, n, sigma, device, i) for i, n in enumerate(groups)]
    parts = [p for x, n in zip(labels, groups, strict=True) for p in group_by_label(x, n)]
    generator = torch.Generator().manual_seed(2)
    score = torch.rand(1, shape.heads, *groups, generator=generator).to(device)
    budget = torch.full((1, shape.heads, groups[0]), density * shape.tokens, device=device)
    return BlockMap(select_budget(score, parts[3].diff(dim=-1), budget), *parts)
