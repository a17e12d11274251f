"""Joint attention: tokens that attend to everything and that everything attends to."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap, ContractError


def with_dense_tokens(block_map: BlockMap, dense: int, first: bool) -> BlockMap:
    """Extend a map over visual tokens by text (or reference) tokens that stay dense.

    The dense tokens become one more group of queries, which selects every key, and one more group of
    keys, which every query selects.

    Args:
        block_map: over the visual tokens alone, counted from 0.
        dense: how many dense tokens there are, 0 or more; padding is simply not counted in.
        first: whether they stand before the visual tokens in the sequence, or after them.

    Returns:
        a map over ``dense`` + visual tokens.

    Raises:
        ContractError: for a negative number.
    """
    if dense < 0:
        raise ContractError("dense", "0 or more", dense)
    grown = torch.nn.functional.pad(block_map.selected, (0, 1, 0, 1), value=True)
    return BlockMap(
        grown,
        *_grown(block_map.query_order, block_map.query_offsets, dense, first),
        *_grown(block_map.key_order, block_map.key_offsets, dense, first),
    )


def _grown(order: Tensor, offsets: Tensor, dense: int, first: bool) -> tuple[Tensor, Tensor]:
    """Order and offsets with the dense tokens as the last group."""
    visual = order.shape[-1]
    own = torch.arange(dense, device=order.device) + (0 if first else visual)
    order = torch.cat([order + (dense if first else 0), own.expand(*order.shape[:2], dense)], -1)
    return order, torch.cat([offsets, offsets[..., -1:] + dense], -1)
