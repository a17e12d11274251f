"""Run variable-block sparse attention with log-sum-exp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import (
    BlockMap,
    check_attention,
    check_block_map,
    resolve_scale,
)
from dit_accel_kernels.cpu.sparse_attention import sparse_attention as sparse_attention_cpu
from dit_accel_kernels.precision import Precision, check_precision
from dit_accel_kernels.quantized_attention import quantized_attention_reference

if TYPE_CHECKING:
    from torch import Tensor


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
    return_lse: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention over the selected pairs of query group and key group.

    The keys that a query group selects are packed before they are multiplied. So no group is padded,
    and no buffer of S x S elements exists. Groups may differ in size, as those of Sparse VideoGen2
    (arXiv 2505.18875) do.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``, of the query's dtype and device.
        block_map: which groups attend to which.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        precision: see `dit_accel_kernels.precision`; on a CPU a quantized one is simulated.
        return_lse: return the log-sum-exp. False returns None and saves two passes over the scores on
            a CPU.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype and original token order, and the natural-log
        log-sum-exp of the scaled scores, float32 ``[B, H, Sq]``. A query without any selected key gets
        0 and -inf.

    Raises:
        ContractError: if an argument does not fit, or the device has no kernel for the precision.

    Example:
        Two groups of three tokens that attend to themselves only::

            order = torch.arange(6).expand(1, 1, 6)
            offsets = torch.tensor([[[0, 3, 6]]])
            selected = torch.eye(2, dtype=torch.bool)[None, None]
            block_map = BlockMap(selected, order, offsets, order, offsets)
            out, lse = sparse_attention(query, key, value, block_map)
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    check_precision(precision, query.device)
    scale = resolve_scale(query, scale)
    run = _run_on_gpu if query.is_cuda else sparse_attention_cpu
    return run(query, key, value, block_map, scale, precision, return_lse)


def _run_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Quantize the inputs if requested, and run sparse attention in Triton."""
    from dit_accel_kernels.gpu.quantize import quantize
    from dit_accel_kernels.gpu.sparse_attention import sparse_attention as sparse_attention_gpu

    with torch.cuda.device_of(query):
        quantized = None
        if precision != "full":
            quantize_value = precision == "int8-fp8"
            quantized = quantize(
                query, key, value, quantize_value=quantize_value, return_lse=return_lse
            )
        return sparse_attention_gpu(
            query, key, value, block_map, scale=scale, return_lse=return_lse, quantized=quantized
        )


def sparse_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
) -> tuple[Tensor, Tensor]:
    """Compute sparse attention as masked dense attention: the oracle of `sparse_attention`.

    Arguments, results and errors are those of `sparse_attention`. The mask is quadratic in memory.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    return quantized_attention_reference(
        query, key, value, precision=precision, scale=scale, mask=block_map.to_mask()
    )
