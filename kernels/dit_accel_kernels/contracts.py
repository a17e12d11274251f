"""What every op takes: layouts, dtypes and error texts, stated once and trusted by the
implementations.

Attention tensors are ``[B, H, S, D]`` (batch, heads, tokens, head_dim), contiguous or a strided
view such as what ``[B, S, H, D]`` transposed is; dtype float32, bfloat16 or float16; one device.
Groups are given by an ``order`` ``[B, H, S]`` that lists token indices group by group, and
``offsets`` ``[B, H, G + 1]``: group g is ``order[offsets[g]:offsets[g + 1]]``. A group may be
empty.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

HELD_SCORES = 1 << 26  # scores that planning holds at a time: 256 MiB of float32
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class ContractError(ValueError):
    """An argument that an op cannot take: its name, what was expected, what was given."""

    def __init__(self, argument: str, expected: str, given: object) -> None:
        super().__init__(f"{argument} must be {expected}, got {given}")


@dataclass(frozen=True)
class BlockMap:
    """Which group of queries attends to which group of keys, per head.

    Attributes:
        selected: bool ``[B, H, Gq, Gk]``.
        query_order, key_order: int64 ``[B, H, Sq]`` and ``[B, H, Sk]``, token indices group by
        group.
        query_offsets, key_offsets: int64 ``[B, H, Gq + 1]`` and ``[B, H, Gk + 1]``, starting at 0.
    """

    selected: Tensor
    query_order: Tensor
    query_offsets: Tensor
    key_order: Tensor
    key_offsets: Tensor

    def density(self) -> Tensor:
        """Share of the (query, key) pairs that are computed, float32 scalar on the device; no host
        sync.
        """
        query_sizes = self.query_offsets.diff(dim=-1).float()  # [B, H, Gq]
        key_sizes = self.key_offsets.diff(dim=-1).float()  # [B, H, Gk]
        pairs = (query_sizes * (self.selected.float() @ key_sizes[..., None])[..., 0]).sum(-1)
        return (pairs / (self.query_order.shape[-1] * self.key_order.shape[-1])).mean()

    def complement(self) -> BlockMap:
        """The map of exactly the pairs that this one leaves out."""
        return replace(self, selected=~self.selected)

    def of_heads(self, heads: Tensor) -> BlockMap:
        """The map of some heads, int64 ``[N]``."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return BlockMap(*(tensor.index_select(1, heads) for tensor in tensors))

    def to_mask(self) -> Tensor:
        """The same selection token by token, bool ``[B, H, Sq, Sk]``. Quadratic: for tests and
        small cases.
        """
        query_group = group_of_token(self.query_order, self.query_offsets)  # [B, H, Sq]
        key_group = group_of_token(self.key_order, self.key_offsets)  # [B, H, Sk]
        keys = key_group[:, :, None, :].expand(-1, -1, self.selected.shape[2], -1)
        columns = self.selected.gather(3, keys)  # [B, H, Gq, Sk]
        rows = query_group[..., None].expand(-1, -1, -1, columns.shape[-1])
        return columns.gather(2, rows)


def group_of_place(offsets: Tensor, tokens: int) -> Tensor:
    """Group of each place of an order, int64 ``[B, H, S]``, from offsets ``[B, H, G + 1]``."""
    place = torch.arange(tokens, device=offsets.device).expand(*offsets.shape[:2], tokens)
    return torch.searchsorted(offsets[..., 1:].contiguous(), place.contiguous(), right=True)


def group_of_token(order: Tensor, offsets: Tensor) -> Tensor:
    """Group of each token, int64 ``[B, H, S]``."""
    group = group_of_place(offsets, order.shape[-1])
    return torch.empty_like(order).scatter_(-1, order, group)


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ContractError unless query, key and value fit together."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tokens(name, tensor)
        if tensor.dtype != query.dtype:
            raise ContractError(name, f"of the query's dtype {query.dtype}", tensor.dtype)
        if tensor.device != query.device:
            raise ContractError(name, f"on the query's device {query.device}", tensor.device)
    batch, heads, _, width = query.shape
    expected = (batch, heads, key.shape[2], width)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != expected:
            raise ContractError(name, f"of shape {list(expected)}", list(tensor.shape))


def check_tokens(name: str, tensor: Tensor) -> None:
    """Raise ContractError unless the tensor is ``[B, H, S, D]`` of a supported dtype."""
    if tensor.dim() != 4:
        raise ContractError(name, "[B, H, S, D]", f"{tensor.dim()} dimensions {list(tensor.shape)}")
    if tensor.dtype not in FLOATS:
        raise ContractError(name, "float32, bfloat16 or float16", tensor.dtype)


def check_block_map(query: Tensor, key: Tensor, block_map: BlockMap) -> None:
    """Raise ContractError unless the map's orders, offsets and selection fit query and key."""
    batch, heads = query.shape[:2]
    groups = {
        "query": block_map.query_offsets.shape[-1] - 1,
        "key": block_map.key_offsets.shape[-1] - 1,
    }
    expected = {
        "query_order": (block_map.query_order, (batch, heads, query.shape[2])),
        "key_order": (block_map.key_order, (batch, heads, key.shape[2])),
        "query_offsets": (block_map.query_offsets, (batch, heads, groups["query"] + 1)),
        "key_offsets": (block_map.key_offsets, (batch, heads, groups["key"] + 1)),
        "selected": (block_map.selected, (batch, heads, groups["query"], groups["key"])),
    }
    if block_map.selected.dtype != torch.bool:
        raise ContractError("block_map.selected", "bool", block_map.selected.dtype)
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ContractError(f"block_map.{name}", f"of shape {list(shape)}", list(tensor.shape))
        if tensor.device != query.device:
            raise ContractError(f"block_map.{name}", f"on {query.device}", tensor.device)


def check_scale(query: Tensor, scale: float | None) -> float:
    """The softmax scale, ``D ** -0.5`` by default; ContractError unless it is above 0."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ContractError("scale", "above 0", scale)
    return scale
