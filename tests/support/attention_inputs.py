"""Build block maps and attention calls for the tests of ops, kernels and methods."""

import dataclasses

import torch
from torch import Tensor

from dit_accel import AttentionCall
from dit_accel.core.attention_call import CallContext
from dit_accel_kernels import BlockMap, group_by_label
from dit_accel_pipelines import TokenLayout


def random_map(query, key, groups: tuple[int, int], density: float, seed: int = 0) -> BlockMap:
    """Group queries and keys at random and select pairs of groups with probability ``density``.

    Args:
        query: ``[B, H, Sq, D]``.
        key: ``[B, H, Sk, D]``.
        groups: number of query groups and of key groups.
        density: above 1 selects every pair, below 0 none.
        seed: of labels and selection.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, heads = query.shape[:2]
    labels = [
        torch.randint(0, count, (batch, heads, x.shape[2]), generator=generator)
        for count, x in zip(groups, (query, key), strict=True)
    ]
    selected = torch.rand(batch, heads, *groups, generator=generator) < density
    return BlockMap(
        selected, *group_by_label(labels[0], groups[0]), *group_by_label(labels[1], groups[1])
    )


def attention_call(layout: TokenLayout, batch: int = 1, seed: int = 0) -> AttentionCall:
    """Build a call of three heads of 16 channels with peaked attention: queries and keys are clustered."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, layout.visual_tokens + layout.text_tokens, 3, 16)
    centers = 1.5 * torch.randn(batch, 7, 3, 16, generator=generator)
    query, key = (
        centers[:, torch.randint(7, (shape[1],), generator=generator)]
        + 0.5 * torch.randn(shape, generator=generator)
        for _ in range(2)
    )
    value = torch.randn(shape, generator=generator)
    context = CallContext(num_steps=10)
    return AttentionCall(
        query=query, key=key, value=value, scale=0.25, context=context, layout=layout
    )


def at_step(call: AttentionCall, step: int) -> AttentionCall:
    """Return the same call in another denoising step."""
    return dataclasses.replace(call, context=dataclasses.replace(call.context, step=step))


def exact_attention(call: AttentionCall) -> Tensor:
    """Compute dense attention of a call, ``[B, S, H, D]``."""
    query, key, value = (x.transpose(1, 2) for x in (call.query, call.key, call.value))
    weights = (call.scale * query @ key.transpose(-1, -2)).softmax(-1)
    return (weights @ value).transpose(1, 2)


def precision_inputs(kind: str, tokens: int, head_dim: int) -> list[Tensor]:
    """Build query, key and value ``[1, 2, S, D]`` that are easy or hard to quantize.

    Args:
        kind: ``"normal"``, ``"biased keys"`` (a large bias in some channels), or ``"clustered"`` (queries
            and keys around eight centers).
        tokens: S.
        head_dim: D.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, tokens, head_dim, generator=generator) for _ in range(3))
    if kind == "biased keys":
        key = key + 8 * (torch.rand(1, 2, 1, head_dim, generator=generator) < 0.1)
    if kind == "clustered":
        centers = 1.5 * torch.randn(1, 2, 8, head_dim, generator=generator)
        query, key = (centers.repeat(1, 1, tokens // 8, 1) + 0.3 * x for x in (query, key))
    return [query, key, value]


def skipping_case(
    tokens: int = 61, head_dim: int = 20, groups: tuple[int, int] = (5, 9), share: float = 0.4
) -> tuple[Tensor, Tensor, Tensor, BlockMap]:
    """Return random tokens of two samples and three heads, and a map with an empty group of each kind."""
    random = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(2, 3, tokens, head_dim, generator=random) for _ in range(3))
    labels = [
        torch.randint(0, max(1, count - 1), (2, 3, tokens), generator=random) for count in groups
    ]
    selected = torch.rand(2, 3, *groups, generator=random) < share
    grouped = (group_by_label(x, count) for x, count in zip(labels, groups, strict=True))
    return query, key, value, BlockMap(selected, *next(grouped), *next(grouped))
