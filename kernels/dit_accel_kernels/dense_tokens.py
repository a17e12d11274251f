"""Extend a map by tokens that stay dense, such as the text tokens of joint attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import BlockMap, ContractError

if TYPE_CHECKING:
    from torch import Tensor


def with_dense_tokens(block_map: BlockMap, dense: int, first: bool) -> BlockMap:
    """Extend a map over visual tokens by text (or reference) tokens that stay dense.

    The dense tokens become one more group of queries, which selects every key, and one more group of
    keys, which every query selects.

    Args:
        block_map: a map over the visual tokens alone, counted from 0.
        dense: number of dense tokens, 0 or more; do not count padding.
        first: True if they precede the visual tokens in the sequence, False if they follow.

    Returns:
        a map over dense and visual tokens.

    Raises:
        ContractError: if ``dense`` is negative.
    """
    if dense < 0:
        raise ContractError("dense", "0 or more", dense)
    selected = torch.nn.functional.pad(block_map.selected, (0, 1, 0, 1), value=True)
    return BlockMap(
        selected,
        *_append_group(block_map.query_order, block_map.query_offsets, dense, first),
        *_append_group(block_map.key_order, block_map.key_offsets, dense, first),
    )


def _append_group(order: Tensor, offsets: Tensor, dense: int, first: bool) -> tuple[Tensor, Tensor]:
    """Return order and offsets with the dense tokens as the last group."""
    visual = order.shape[-1]
    dense_index = torch.arange(dense, device=order.device) + (0 if first else visual)
    visual_index = order + (dense if first else 0)
    order = torch.cat([visual_index, dense_index.expand(*order.shape[:2], dense)], -1)
    return order, torch.cat([offsets, offsets[..., -1:] + dense], -1)
