"""Define the contract of all ops: tensor layouts, dtypes and error texts.

Attention tensors are ``[B, H, S, D]`` (batch, heads, tokens, head_dim) on one device, in float32,
bfloat16 or float16. They are contiguous or a strided view, such as a transposed ``[B, S, H, D]`` tensor.
An ``order`` ``[B, H, S]`` lists token indices group by group, and ``offsets`` ``[B, H, G + 1]`` bound
the groups: group g is ``order[offsets[g]:offsets[g + 1]]``. A group may be empty. The ops are for inference:
no gradient flows through them. Implementations trust these checks and do not repeat them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

# A key group that a map skips can be represented by one of these.
Skipped = Literal["centroid", "expansion"]

# Attention scores that planning computes at a time: 256 MiB of float32.
MAX_SCORES = 1 << 26


class ContractError(ValueError):
    """An argument that an op does not accept.

    Args:
        argument: name of the argument.
        expected: accepted values, as in "query must be [B, H, S, D]".
        got: the value that was passed.
        hint: how to fix it.
    """

    def __init__(self, argument: str, expected: str, got: object, hint: str = "") -> None:
        suffix = f"; {hint}" if hint else ""
        super().__init__(f"{argument} must be {expected}, got {got}{suffix}")


@dataclass(frozen=True)
class BlockMap:
    """The groups of keys that each group of queries attends to, per head.

    Attributes:
        selected: bool ``[B, H, Gq, Gk]``.
        query_order: int64 ``[B, H, Sq]``, query indices group by group.
        query_offsets: int64 ``[B, H, Gq + 1]``, from 0 to S.
        key_order: int64 ``[B, H, Sk]``, key indices group by group.
        key_offsets: int64 ``[B, H, Gk + 1]``, from 0 to S.

    Example:
        Two groups of three tokens that attend to themselves only::

            order = torch.arange(6).expand(1, 1, 6)
            offsets = torch.tensor([[[0, 3, 6]]])
            selected = torch.eye(2, dtype=torch.bool)[None, None]
            block_map = BlockMap(selected, order, offsets, order, offsets)
    """

    selected: Tensor
    query_order: Tensor
    query_offsets: Tensor
    key_order: Tensor
    key_offsets: Tensor

    def density(self) -> Tensor:
        """Return the share of (query, key) pairs that are computed, without a host sync.

        Returns:
            float32 scalar on the map's device, the mean over batch and heads.
        """
        query_sizes = self.query_offsets.diff(dim=-1).float()  # [B, H, Gq]
        key_sizes = self.key_offsets.diff(dim=-1).float()  # [B, H, Gk]
        pairs = (query_sizes * (self.selected.float() @ key_sizes[..., None])[..., 0]).sum(-1)
        return (pairs / (self.query_order.shape[-1] * self.key_order.shape[-1])).mean()

    def complement(self) -> BlockMap:
        """Return the map of exactly the pairs that this map skips."""
        return replace(self, selected=~self.selected)

    def select_heads(self, heads: Tensor) -> BlockMap:
        """Return the map of some heads, given by index, int64 ``[N]``."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return BlockMap(*(tensor.index_select(1, heads) for tensor in tensors))

    def to_mask(self) -> Tensor:
        """Return the selection token by token, bool ``[B, H, Sq, Sk]``.

        The mask is quadratic in the number of tokens: use it in tests and small cases.
        """
        query_labels = label_tokens(self.query_order, self.query_offsets)  # [B, H, Sq]
        key_labels = label_tokens(self.key_order, self.key_offsets)  # [B, H, Sk]
        key_index = key_labels[:, :, None, :].expand(-1, -1, self.selected.shape[2], -1)
        columns = self.selected.gather(3, key_index)  # [B, H, Gq, Sk]
        query_index = query_labels[..., None].expand(-1, -1, -1, columns.shape[-1])
        return columns.gather(2, query_index)


def label_positions(offsets: Tensor, tokens: int) -> Tensor:
    """Return the group of each position of an order, int64 ``[B, H, S]``.

    Args:
        offsets: int64 ``[B, H, G + 1]``.
        tokens: length S of the order.
    """
    if not offsets.is_cuda:
        sizes = offsets.diff(dim=-1).flatten()
        groups = torch.arange(offsets.shape[-1] - 1, device=offsets.device)
        groups = groups.repeat(offsets[..., 0].numel())
        labels = groups.repeat_interleave(sizes, output_size=offsets[..., 0].numel() * tokens)
        return labels.view(*offsets.shape[:2], tokens)
    positions = torch.arange(tokens, device=offsets.device).expand(*offsets.shape[:2], tokens)
    return torch.searchsorted(offsets[..., 1:].contiguous(), positions.contiguous(), right=True)


def label_tokens(order: Tensor, offsets: Tensor) -> Tensor:
    """Return the group of each token, int64 ``[B, H, S]``: the inverse of `group_by_label`.

    Args:
        order: int64 ``[B, H, S]``.
        offsets: int64 ``[B, H, G + 1]``.
    """
    labels = label_positions(offsets, order.shape[-1])
    return torch.empty_like(order).scatter_(-1, order, labels)


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ContractError unless query, key and value fit together.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``, of the query's dtype and device.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tokens(name, tensor)
        if tensor.dtype != query.dtype:
            expected = f"of the query's dtype {query.dtype}"
            raise ContractError(name, expected, tensor.dtype, "cast all three to one dtype")
        if tensor.device != query.device:
            expected = f"on the query's device {query.device}"
            raise ContractError(name, expected, tensor.device, "move all three to one device")
    batch, heads, _, head_dim = query.shape
    shape = (batch, heads, key.shape[2], head_dim)
    for name, tensor in (("key", key), ("value", value)):
        check_shape(name, tensor, shape)


def check_tokens(name: str, tensor: Tensor) -> None:
    """Raise ContractError unless the tensor is ``[B, H, S, D]`` of a supported dtype, without a gradient."""
    if tensor.dim() != 4:
        got = f"{tensor.dim()} dimensions {list(tensor.shape)}"
        raise ContractError(name, "[B, H, S, D]", got)
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ContractError(name, "float32, bfloat16 or float16", tensor.dtype)
    check_no_gradient(name, tensor)


def check_no_gradient(name: str, tensor: Tensor) -> None:
    """Raise ContractError if autograd would record the op, whose gradient would be wrong or missing."""
    if tensor.requires_grad and torch.is_grad_enabled():
        hint = f"no gradient flows through this op: call it in torch.no_grad(), or pass {name}.detach()"
        raise ContractError(name, "a tensor that requires no gradient", "requires_grad=True", hint)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ContractError unless the tensor has the expected shape."""
    if tensor.shape != shape:
        raise ContractError(name, f"of shape {list(shape)}", list(tensor.shape))


def check_block_map(query: Tensor, key: Tensor, block_map: BlockMap) -> None:
    """Raise ContractError unless the map's orders, offsets and selection fit query and key.

    Args:
        query: ``[B, H, Sq, D]``.
        key: ``[B, H, Sk, D]``.
        block_map: the map to check; the values of its tensors are not read.
    """
    if block_map.selected.dtype != torch.bool:
        raise ContractError("block_map.selected", "bool", block_map.selected.dtype)
    heads = tuple(query.shape[:2])
    num_query_groups = block_map.query_offsets.shape[-1] - 1
    num_key_groups = block_map.key_offsets.shape[-1] - 1
    shapes = {
        "query_order": (*heads, query.shape[2]),
        "key_order": (*heads, key.shape[2]),
        "query_offsets": (*heads, num_query_groups + 1),
        "key_offsets": (*heads, num_key_groups + 1),
        "selected": (*heads, num_query_groups, num_key_groups),
    }
    for field, shape in shapes.items():
        name, tensor = f"block_map.{field}", getattr(block_map, field)
        check_shape(name, tensor, shape)
        if tensor.device != query.device:
            expected = f"on the query's device {query.device}"
            raise ContractError(name, expected, tensor.device, "move the map to that device")


def resolve_scale(query: Tensor, scale: float | None) -> float:
    """Return the softmax scale, ``D ** -0.5`` by default.

    Raises:
        ContractError: if the scale is not above 0.
    """
    resolved: float = query.shape[-1] ** -0.5 if scale is None else scale
    if not resolved > 0:
        raise ContractError("scale", "above 0", resolved)
    return resolved
