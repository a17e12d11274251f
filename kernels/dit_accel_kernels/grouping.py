"""Group tokens by label with one stable counting sort."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.cpu.compiled import group_by_label as group_by_label_cpu
from dit_accel_kernels.cpu.compiled import library_for

if TYPE_CHECKING:
    from torch import Tensor


def group_by_label(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """List tokens group by group.

    Args:
        labels: integer ``[B, H, S]`` in ``0 .. count - 1``.
        count: number of groups G; groups may be empty.

    Returns:
        order int64 ``[B, H, S]`` and offsets int64 ``[B, H, G + 1]``: group g holds the tokens
        ``order[offsets[g]:offsets[g + 1]]`` in ascending order.

    Example:
        >>> order, offsets = group_by_label(torch.tensor([[[1, 0, 1]]]), 2)
        >>> order.tolist(), offsets.tolist()
        ([[[1, 0, 2]]], [[[0, 1, 3]]])
    """
    if labels.is_cuda:
        from dit_accel_kernels.gpu.grouping import group_by_label as group_by_label_gpu

        with torch.cuda.device_of(labels):
            return group_by_label_gpu(labels, count)
    library = library_for(labels)
    if not isinstance(library, str):
        return group_by_label_cpu(library, labels, count)
    order = labels.argsort(dim=-1, stable=True)
    sizes = torch.zeros(*labels.shape[:-1], count + 1, dtype=torch.int64, device=labels.device)
    sizes.scatter_add_(-1, labels.long() + 1, torch.ones_like(labels, dtype=torch.int64))
    return order, sizes.cumsum(-1)
